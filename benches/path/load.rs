//! The load: events over keep-alive connections, made as cheaply as can be, so that the server is what is measured.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use asapp_receiver::simulator::model::{Event, ISSUES_PER_MINUTE, Model};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pki;

/// How many different events are made up; each is sent again and again, under a new id.
const EVENTS: usize = 2000;
/// What they have to come to on average: short ones are left out.
const MEAN_BODY: usize = 2400;
/// Below this an event is due: the rest of its time is spent looking at the clock, which is exact where sleeping is not.
const SPIN: Duration = Duration::from_micros(150);

/// Whole requests, ready to be sent but for their ids.
#[derive(Clone)]
pub(crate) struct Requests(Arc<Vec<Request>>);

struct Request {
    bytes: Vec<u8>,
    body: usize,
    /// Where the 36 bytes of its event_id begin.
    id: usize,
}

impl Requests {
    pub(crate) fn new() -> Self {
        let mut model = Model::new(1, ISSUES_PER_MINUTE);
        let mut events: Vec<_> = (0..EVENTS).map(|_| model.next(time::OffsetDateTime::now_utc())).collect();
        events.sort_unstable_by_key(|event| event.body.len());
        let mean = |events: &[Event]| events.iter().map(|event| event.body.len()).sum::<usize>() / events.len();
        let short = (0..EVENTS - 1).find(|&short| mean(&events[short..]) >= MEAN_BODY).unwrap_or(0);
        let requests = events[short..].iter().map(|event| {
            let body = event.body.len();
            let mut bytes = format!(
                "POST /events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {body}\r\n\r\n"
            )
            .into_bytes();
            let text = std::str::from_utf8(&event.body).unwrap();
            let id = bytes.len() + text.find(&event.event_id).unwrap();
            bytes.extend_from_slice(&event.body);
            Request { bytes, body, id }
        });
        Self(Arc::new(requests.collect()))
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.0.iter().map(|request| request.body).sum();
        write!(f, "{} different events of {} bytes on average", self.0.len(), bytes / self.0.len())
    }
}

/// A load under way.
pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<Vec<Duration>>,
}

#[derive(Default)]
struct Shared {
    answered: AtomicU64,
    measuring: AtomicBool,
    over: AtomicBool,
}

/// What a load came to.
pub(crate) struct Done {
    /// From its first to its last event.
    pub(crate) answered: u64,
    /// To the 200, of the events answered while it was measured.
    pub(crate) times: Vec<Duration>,
}

impl Load {
    /// Each connection sends its next event when it has the answer to the last one.
    pub(crate) async fn closed(
        connector: &TlsConnector,
        address: SocketAddr,
        connections: usize,
        requests: &Requests,
    ) -> Self {
        let mut load = Self { shared: Arc::default(), tasks: JoinSet::new() };
        for connection in connect(connector, address, connections, requests).await {
            let shared = Arc::clone(&load.shared);
            load.tasks.spawn(connection.run(shared, async || Some(Instant::now())));
        }
        load
    }

    /// `rate` events a second, whatever the answers take; the connections take turns.
    pub(crate) async fn open(
        connector: &TlsConnector,
        address: SocketAddr,
        connections: usize,
        requests: &Requests,
        rate: u64,
    ) -> Self {
        let mut load = Self { shared: Arc::default(), tasks: JoinSet::new() };
        let mut queues = Vec::with_capacity(connections);
        for connection in connect(connector, address, connections, requests).await {
            let (queue, mut due) = mpsc::channel(4096);
            queues.push(queue);
            let shared = Arc::clone(&load.shared);
            load.tasks.spawn(connection.run(shared, async move || due.recv().await));
        }
        let shared = Arc::clone(&load.shared);
        std::thread::spawn(move || keep_pace(&queues, rate, &shared.over));
        load
    }

    /// Times count from now on.
    pub(crate) fn measure(&self) {
        self.shared.measuring.store(true, Relaxed);
    }

    /// Answers had so far.
    pub(crate) fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }

    /// No further event is sent; back when the last one is answered.
    pub(crate) async fn end(self) -> Done {
        self.shared.measuring.store(false, Relaxed);
        self.shared.over.store(true, Relaxed);
        let times = self.tasks.join_all().await.concat();
        Done { answered: self.shared.answered.load(Relaxed), times }
    }
}

/// Tells a queue whenever an event is due. A queue that is full has seconds of work: the server is not up to the rate.
fn keep_pace(queues: &[mpsc::Sender<Instant>], rate: u64, over: &AtomicBool) {
    let interval = Duration::from_secs(1) / u32::try_from(rate).unwrap();
    let mut due = Instant::now();
    for queue in queues.iter().cycle() {
        due += interval;
        std::thread::sleep(due.saturating_duration_since(Instant::now()).saturating_sub(SPIN));
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        if over.load(Relaxed) {
            return;
        }
        queue.try_send(due).expect("a server that keeps up with the rate");
    }
}

struct Connection {
    stream: TlsStream<TcpStream>,
    requests: Requests,
    random: fastrand::Rng,
    request: Vec<u8>,
    answer: Vec<u8>,
}

async fn connect(
    connector: &TlsConnector,
    address: SocketAddr,
    connections: usize,
    requests: &Requests,
) -> Vec<Connection> {
    let mut connected = Vec::with_capacity(connections);
    for _ in 0..connections {
        connected.push(Connection {
            stream: pki::connect(connector, address).await.unwrap(),
            requests: requests.clone(),
            random: fastrand::Rng::new(),
            request: Vec::new(),
            answer: Vec::new(),
        });
    }
    connected
}

impl Connection {
    /// Sends an event whenever `due` says since when one is due.
    async fn run(mut self, shared: Arc<Shared>, mut due: impl AsyncFnMut() -> Option<Instant>) -> Vec<Duration> {
        let mut times = Vec::new();
        while !shared.over.load(Relaxed)
            && let Some(due) = due().await
        {
            self.post().await;
            shared.answered.fetch_add(1, Relaxed);
            if shared.measuring.load(Relaxed) {
                times.push(due.elapsed());
            }
        }
        times
    }

    async fn post(&mut self) {
        let Self { stream, requests, random, request, answer } = self;
        let next = &requests.0[random.usize(..requests.0.len())];
        request.clear();
        request.extend_from_slice(&next.bytes);
        let id = uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid();
        id.hyphenated().encode_lower(&mut request[next.id..next.id + 36]);
        stream.write_all(request).await.unwrap();
        stream.flush().await.unwrap();
        answer.clear();
        while !is_whole(answer) {
            assert!(stream.read_buf(answer).await.unwrap() > 0, "the server closed the connection");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(answer));
    }
}

/// Whether this is all of an answer: its head, and as much of a body as that promises.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n") else { return false };
    let length = std::str::from_utf8(&answer[..head])
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ").map(|length| length.parse::<usize>().unwrap()));
    answer.len() >= head + 4 + length.unwrap_or(0)
}
