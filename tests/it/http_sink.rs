//! FAULTS "Sinks" over HTTP.

use crate::harness::target::{Reply, Target};

#[test]
fn the_target_serves() {
    let mut target = Target::start(|request| Reply::status(if request.number == 0 { 204 } else { 503 }));
    let ask = |body: &str| {
        let output = std::process::Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "-d", body])
            .arg(target.url("/x?y=1"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!((ask("a"), ask("b")), ("204".to_owned(), "503".to_owned()));
    let requests = target.wait_requests(2);
    assert_eq!(requests[1].text(), "b");
    assert_eq!(requests[1].path, "/x?y=1");
    assert_eq!(requests[1].answered, Some(503));
    target.go_away();
    target.come_back();
}
