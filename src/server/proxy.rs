//! The PROXY protocol, versions 1 and 2: the client's address, sent by a trusted layer-4 load balancer ahead of TLS.
//!
//! By HAProxy's `proxy-protocol.txt`, and no laxer. A parser of its own, because TLS goes on with the bare socket: the header
//! is taken off it to its last byte, and nothing after that. The libraries read on into a buffer of theirs, and differ
//! from the text where it matters: they refuse headers that come byte by byte, take `+80` for a port, or panic.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Of version 1, with its CRLF.
const LONGEST_LINE: usize = 107;
/// What may follow the first 16 bytes of version 2. Addresses take 36; balancers add some hundred bytes.
const LONGEST_REST: usize = 4096;
const LINE: &[u8] = b"PROXY ";
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Why a connection ends before TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Closed without a byte, as load balancers do.
    Probe,
    Timeout,
    Flaw(Flaw),
}

/// What is wrong with a connection's PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error(
        "the connection comes from outside listen.trusted_proxies: if this is the load balancer, add its network there"
    )]
    Untrusted,
    #[error("no PROXY header: let the load balancer send one (send-proxy-v2), or set listen.proxy_protocol to \"off\"")]
    Absent,
    #[error(
        "a PROXY header while listen.proxy_protocol is \"off\": set it to \"required\" and name the load balancer in \
         listen.trusted_proxies, or let that send none"
    )]
    Unexpected,
    #[error("the PROXY header is not as the protocol has it, or broken off")]
    Malformed,
    #[error("the PROXY header is longer than 107 bytes (version 1) or 4,112 (version 2)")]
    TooLong,
}

impl Flaw {
    /// The label of `asapp_receiver_connections_closed_total`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Untrusted => "proxy-untrusted",
            Self::Absent => "proxy-absent",
            Self::Unexpected => "proxy-unexpected",
            Self::Malformed => "proxy-malformed",
            Self::TooLong => "proxy-too-long",
        }
    }
}

/// Whose connection this is: of the client that the header names, or of `remote` itself where it names none. Reads
/// the header that one of `proxies` sends; without `proxies` reads nothing, and there must be none.
pub(super) async fn client(
    stream: &mut TcpStream,
    remote: SocketAddr,
    proxies: Option<&[IpNet]>,
    deadline: Instant,
) -> Result<SocketAddr, Stop> {
    let Some(proxies) = proxies else {
        // Silence and failure are TLS's to tell.
        let unexpected = timeout_at(deadline, begins_with_header(stream)).await.unwrap_or(false);
        return if unexpected { Err(Stop::Flaw(Flaw::Unexpected)) } else { Ok(remote) };
    };
    let sender = remote.ip().to_canonical();
    if !proxies.iter().any(|network| network.contains(&sender)) {
        return Err(Stop::Flaw(Flaw::Untrusted));
    }
    let named = timeout_at(deadline, take_header(stream)).await.map_err(|_| Stop::Timeout)??;
    Ok(named.map_or(remote, |client| SocketAddr::new(client.ip().to_canonical(), client.port())))
}

/// A look at what has come first: nothing that TLS begins with resembles it.
async fn begins_with_header(stream: &TcpStream) -> bool {
    let mut first = [0; SIGNATURE.len()];
    let seen = stream.peek(&mut first).await.unwrap_or(0);
    seen >= LINE.len() && !matches!(parse(&first[..seen]), Err(Flaw::Absent))
}

/// Reads the header, and not a byte more, however it is cut into segments.
async fn take_header(stream: &mut TcpStream) -> Result<Option<SocketAddr>, Stop> {
    let broken_off = |_: io::Error| Stop::Flaw(Flaw::Malformed);
    let mut header = [0; LONGEST_LINE];
    let mut taken = 0;
    let (length, client) = loop {
        let seen = match stream.peek(&mut header[taken..]).await {
            Ok(0) | Err(_) if taken == 0 => return Err(Stop::Probe),
            Ok(0) => return Err(Stop::Flaw(Flaw::Malformed)),
            Ok(more) => taken + more,
            Err(error) => return Err(broken_off(error)),
        };
        match parse(&header[..seen]).map_err(Stop::Flaw)? {
            Parsed::Header { length, client } => break (length, client),
            Parsed::Part => {
                stream.read_exact(&mut header[taken..seen]).await.map_err(broken_off)?;
                taken = seen;
            }
        }
    };
    while taken < length {
        let next = header.len().min(length - taken);
        stream.read_exact(&mut header[..next]).await.map_err(broken_off)?;
        taken += next;
    }
    Ok(client)
}

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parsed {
    /// The beginning of a header, and of nothing else. Never of [`LONGEST_LINE`] bytes or more.
    Part,
    /// `length` may be more than what was seen of it.
    Header { length: usize, client: Option<SocketAddr> },
}

/// Judges the first bytes, as soon as they can be judged.
fn parse(bytes: &[u8]) -> Result<Parsed, Flaw> {
    let may_be = |begin: &[u8]| bytes.iter().zip(begin).all(|(byte, expected)| byte == expected);
    if may_be(LINE) {
        version_1(bytes)
    } else if may_be(SIGNATURE) {
        version_2(bytes)
    } else {
        Err(Flaw::Absent)
    }
}

fn version_1(bytes: &[u8]) -> Result<Parsed, Flaw> {
    let bytes = &bytes[..bytes.len().min(LONGEST_LINE)];
    let unfinished = if bytes.len() < LONGEST_LINE { Ok(Parsed::Part) } else { Err(Flaw::TooLong) };
    let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else { return unfinished };
    match &bytes[end..] {
        [b'\r', b'\n', ..] => Ok(Parsed::Header { length: end + 2, client: client_of_line(&bytes[..end])? }),
        [b'\r'] => unfinished,
        _ => Err(Flaw::Malformed),
    }
}

fn client_of_line(line: &[u8]) -> Result<Option<SocketAddr>, Flaw> {
    if let Some([] | [b' ', ..]) = line.strip_prefix(b"PROXY UNKNOWN") {
        return Ok(None);
    }
    let line = std::str::from_utf8(line).map_err(|_| Flaw::Malformed)?;
    let fields: Vec<&str> = line.split(' ').collect();
    let [_, family, source, destination, source_port, destination_port] = fields[..] else {
        return Err(Flaw::Malformed);
    };
    let source = match family {
        "TCP4" => both::<Ipv4Addr>(source, destination).map(IpAddr::V4),
        "TCP6" => both::<Ipv6Addr>(source, destination).map(IpAddr::V6),
        _ => None,
    };
    match (source, port(source_port), port(destination_port)) {
        (Some(source), Some(port), Some(_)) => Ok(Some(SocketAddr::new(source, port))),
        _ => Err(Flaw::Malformed),
    }
}

/// The source, if both are addresses of this family.
fn both<A: FromStr>(source: &str, destination: &str) -> Option<A> {
    destination.parse::<A>().ok()?;
    source.parse().ok()
}

/// Digits without leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| plain)
}

fn version_2(bytes: &[u8]) -> Result<Parsed, Flaw> {
    let Some(([.., command, family, high, low], rest)) = bytes.split_first_chunk::<16>() else {
        return Ok(Parsed::Part);
    };
    let after = usize::from(u16::from_be_bytes([*high, *low]));
    if after > LONGEST_REST {
        return Err(Flaw::TooLong);
    }
    let header = |client| Ok(Parsed::Header { length: 16 + after, client });
    match (command, family) {
        // The balancer speaks for itself, whatever else it says.
        (0x20, _) => header(None),
        (0x21, 0x11) => addresses::<12>(rest, after, |[a, b, c, d, _, _, _, _, high, low, _, _]| {
            SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))
        }),
        (0x21, 0x21) => addresses::<36>(rest, after, |block| {
            let mut source = [0; 16];
            source.copy_from_slice(&block[..16]);
            SocketAddr::from((source, u16::from_be_bytes([block[32], block[33]])))
        }),
        // Not TCP, or no address given: there is none to go by.
        (0x21, 0x00..=0x02 | 0x10 | 0x12 | 0x20 | 0x22 | 0x30..=0x32) => header(None),
        _ => Err(Flaw::Malformed),
    }
}

/// A header of version 2 whose addresses take `N` bytes.
fn addresses<const N: usize>(
    rest: &[u8],
    after: usize,
    source: impl Fn([u8; N]) -> SocketAddr,
) -> Result<Parsed, Flaw> {
    if after < N {
        return Err(Flaw::Malformed);
    }
    Ok(match rest.first_chunk() {
        None => Parsed::Part,
        Some(block) => Parsed::Header { length: 16 + after, client: Some(source(*block)) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, rest].concat()
    }

    fn v4_block() -> Vec<u8> {
        [[192, 0, 2, 1], [10, 0, 0, 1]].concat().into_iter().chain([0x1f, 0x90, 0x20, 0xfb]).collect()
    }

    fn v6_block() -> Vec<u8> {
        let source: Ipv6Addr = "2001:db8::7".parse().unwrap();
        [source.octets(), [0; 16]].concat().into_iter().chain([0x1f, 0x90, 0x20, 0xfb]).collect()
    }

    /// Every beginning of `header` is a part, the whole is what it should be, and what follows changes nothing.
    #[track_caller]
    fn good(header: &[u8], client: Option<&str>) {
        let client = client.map(|text| text.parse().unwrap());
        let whole = Parsed::Header { length: header.len(), client };
        for length in 0..header.len() {
            let parsed = parse(&header[..length]);
            // Version 2 is known from its addresses on.
            assert!(parsed == Ok(Parsed::Part) || parsed == Ok(whole), "{length}: {parsed:?}");
            assert!(parsed == Ok(Parsed::Part) || header.starts_with(SIGNATURE) && length >= 16, "{length}");
        }
        assert_eq!(parse(header), Ok(whole), "{}", header.escape_ascii());
        let followed = [header, b"\x16\x03\x01\r\nPROXY \xff"].concat();
        assert_eq!(parse(&followed), Ok(whole), "{}", header.escape_ascii());
    }

    #[test]
    fn good_headers() {
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        for (header, client) in [
            ("PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n", Some("192.0.2.1:56324")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255:65535")),
            ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", Some("0.0.0.0:0")),
            ("PROXY TCP6 2001:db8::7 ::1 8080 443\r\n", Some("[2001:db8::7]:8080")),
            (&format!("PROXY TCP6 {longest} {longest} 65535 65535\r\n"), Some(&format!("[{longest}]:65535"))),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN what it likes\r\n", None),
            (&format!("PROXY UNKNOWN {longest} {longest} 65535 65535\r\n"), None),
        ] {
            good(header.as_bytes(), client);
        }
        let garbage = [0xff; 300];
        for (header, client) in [
            (v2(0x21, 0x11, &v4_block()), Some("192.0.2.1:8080")),
            (v2(0x21, 0x21, &v6_block()), Some("[2001:db8::7]:8080")),
            // Whatever follows the addresses.
            (v2(0x21, 0x11, &[v4_block(), garbage.to_vec()].concat()), Some("192.0.2.1:8080")),
            (v2(0x21, 0x21, &[v6_block(), vec![0; LONGEST_REST - 36]].concat()), Some("[2001:db8::7]:8080")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4_block()), None),
            (v2(0x20, 0xff, &garbage), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x00, &garbage), None),
            (v2(0x21, 0x12, &v4_block()), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            good(&header, client);
        }
    }

    #[test]
    fn what_is_not_as_the_protocol_has_it_is_refused() {
        for line in [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\rX",
            "PROXY TCP4 1.1.1.1\n 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 ::1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 ::2 1 2\r\n",
            "PROXY TCP6 1.1.1.1 ::2 1 2\r\n",
            "PROXY TCP6 ::1%1 ::2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 00\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 \r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY UNKNOWN x\ny\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1\0 2\r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(Flaw::Malformed), "{line:?}");
        }
        for header in [
            v2(0x11, 0x11, &v4_block()),
            v2(0x31, 0x11, &v4_block()),
            v2(0x22, 0x11, &v4_block()),
            v2(0x21, 0x13, &v4_block()),
            v2(0x21, 0x41, &v4_block()),
            v2(0x21, 0x11, &v4_block()[1..]),
            v2(0x21, 0x21, &v6_block()[1..]),
            v2(0x21, 0x11, &[]),
        ] {
            assert_eq!(parse(&header), Err(Flaw::Malformed), "{}", header.escape_ascii());
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_has_come() {
        let line = format!("PROXY UNKNOWN {}", "x".repeat(200));
        assert_eq!(parse(&line.as_bytes()[..LONGEST_LINE - 1]), Ok(Parsed::Part));
        assert_eq!(parse(&line.as_bytes()[..LONGEST_LINE]), Err(Flaw::TooLong));
        let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));
        good(line(LONGEST_LINE).as_bytes(), None);
        assert_eq!(parse(line(LONGEST_LINE + 1).as_bytes()), Err(Flaw::TooLong));

        for command in [0x20, 0x21] {
            assert_eq!(parse(&v2(command, 0x11, &[0; LONGEST_REST + 1])[..16]), Err(Flaw::TooLong));
        }
    }

    #[test]
    fn what_is_no_header_is_told_at_once() {
        for other in
            [&b"\x16\x03\x01"[..], b"GET / HTTP/1.1\r\n", b"PROXX", b"PROXY\r\n", b"\r\n\r\n\0\r\nQUIT\r", b"\n"]
        {
            assert_eq!(parse(other), Err(Flaw::Absent), "{}", other.escape_ascii());
        }
    }

    /// Random bytes, and good headers with random damage.
    #[test]
    fn nothing_panics_and_a_part_stays_short() {
        let mut random = fastrand::Rng::with_seed(0x50524f5859);
        let good = [
            b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n".to_vec(),
            b"PROXY TCP6 2001:db8::7 ::1 8080 443\r\n".to_vec(),
            v2(0x21, 0x11, &v4_block()),
            v2(0x21, 0x21, &[v6_block(), vec![7; 40]].concat()),
        ];
        let (mut parts, mut headers, mut flaws) = (0, 0, 0);
        for round in 0..200_000 {
            let mut bytes = good[round % good.len()].clone();
            if random.u8(0..8) == 0 {
                bytes = vec![0; random.usize(0..300)];
                random.fill(&mut bytes);
            }
            for _ in 0..random.usize(0..3) {
                if let Some(byte) = random.choice(&mut bytes) {
                    *byte = random.u8(..);
                }
            }
            bytes.extend((0..random.usize(0..4)).map(|_| random.u8(..)));
            bytes.truncate(random.usize(..=bytes.len()));
            match parse(&bytes) {
                Ok(Parsed::Part) => {
                    assert!(bytes.len() < LONGEST_LINE, "{}", bytes.escape_ascii());
                    parts += 1;
                }
                Ok(Parsed::Header { length, .. }) => {
                    assert!((15..=16 + LONGEST_REST).contains(&length), "{}", bytes.escape_ascii());
                    // What was enough is enough, whatever follows.
                    let more = [&bytes[..], b"\r\n\xff"].concat();
                    assert_eq!(parse(&bytes), parse(&more), "{}", bytes.escape_ascii());
                    headers += 1;
                }
                Err(_) => flaws += 1,
            }
        }
        assert!(parts > 10_000 && headers > 1_000 && flaws > 10_000, "{parts} {headers} {flaws}");
    }
}
