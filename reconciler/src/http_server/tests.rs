use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::*;

const LIMITS: Limits = Limits {
    connections: 2,
    connection_time: Duration::from_secs(20),
    header_time: Duration::from_millis(300),
    header_bytes: 8 << 10,
    headers: 8,
    body_bytes: 10,
    keep_alive: true,
    grace: Duration::from_secs(10),
};

/// Answers with the length of the body, on /slow only when it is let.
#[derive(Debug, Clone, Default)]
struct Count {
    go: Arc<Notify>,
    asked: Arc<Notify>,
    refused: Arc<AtomicUsize>,
}

impl Handler for Count {
    type Body = Full<Bytes>;

    async fn answer(&self, request: Request<Limited<Incoming>>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/slow" {
            self.asked.notify_one();
            self.go.notified().await;
        }
        let said = match request.into_body().collect().await {
            Ok(body) => body.to_bytes().len().to_string(),
            Err(error) => error.to_string(),
        };
        Response::new(Full::from(said))
    }

    fn refused_body(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// A server, what it asks, and where it is.
async fn start(limits: Limits) -> (Server, Count, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let handler = Count::default();
    (Server::start(listener, limits, handler.clone()), handler, address)
}

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("listens");
    stream.write_all(text.as_bytes()).await.expect("sent");
    stream
}

/// All that comes until the server hangs up.
async fn rest(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an end").expect("readable");
    String::from_utf8(said).expect("text")
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n{body}")
}

#[tokio::test]
async fn bodies_and_headers_have_limits() {
    let (server, handler, address) = start(LIMITS).await;
    let ask = async |headers: &str, body: &str| {
        rest(send(address, &post("/", headers, body)).await).await
    };
    let fits = ask("Content-Length: 10\r\n", "0123456789").await;
    assert!(fits.starts_with("HTTP/1.1 200") && fits.ends_with("\r\n\r\n10"), "{fits}");
    // What is announced is refused unread, what is not breaks off.
    let announced = ask("Content-Length: 1000000000\r\n", "x").await;
    assert!(announced.starts_with("HTTP/1.1 413") && announced.contains(TOO_LARGE), "{announced}");
    assert_eq!(handler.refused.load(Ordering::Relaxed), 1);
    let chunked = ask("Transfer-Encoding: chunked\r\n", "b\r\n01234567890\r\n0\r\n\r\n").await;
    assert!(chunked.ends_with("length limit exceeded"), "{chunked}");
    let many = ask(&"X: y\r\n".repeat(20), "").await;
    assert!(many.starts_with("HTTP/1.1 431"), "{many}");
    let long = ask(&format!("X: {}\r\n", "y".repeat(16 << 10)), "").await;
    assert!(long.starts_with("HTTP/1.1 431"), "{long}");
    server.stop().await;
}

#[tokio::test]
async fn a_slow_client_is_cut_off_and_others_wait_for_its_place() {
    let (server, _, address) = start(LIMITS).await;
    let idle = [send(address, "POST / HTTP/1.1\r\n").await, send(address, "").await];
    // Both places are taken; this one is served after the headers' time.
    let served = rest(send(address, &post("/", "", "")).await).await;
    assert!(served.ends_with("\r\n\r\n0"), "{served}");
    drop(idle);
    // A connection as a whole has a time too.
    let short = Limits { connection_time: Duration::from_millis(300), ..LIMITS };
    let (other, _, address) = start(short).await;
    assert_eq!(rest(send(address, &post("/slow", "", "")).await).await, "");
    server.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn what_is_being_answered_at_the_end_is_answered() {
    let (server, handler, address) = start(LIMITS).await;
    let slow = send(address, &post("/slow", "", "").replace("Connection: close\r\n", "")).await;
    handler.asked.notified().await;
    let ending = tokio::spawn(server.stop());
    // It takes no more.
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.expect("it listens no more");
    assert!(!ending.is_finished());
    handler.go.notify_one();
    assert!(rest(slow).await.ends_with("\r\n\r\n0"), "answered, and then the end");
    ending.await.expect("ended");
}

#[tokio::test]
async fn the_end_waits_no_longer_than_it_may() {
    let (server, handler, address) =
        start(Limits { grace: Duration::from_millis(200), ..LIMITS }).await;
    let stuck = send(address, &post("/slow", "", "")).await;
    handler.asked.notified().await;
    tokio::time::timeout(Duration::from_secs(10), server.stop()).await.expect("in time");
    assert_eq!(rest(stuck).await, "", "cut off");
}
