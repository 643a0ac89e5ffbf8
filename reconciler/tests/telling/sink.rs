//! Receivers for tests: an HTTP server and an SMTP server that note what they are told.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// A server that answers as it was told to, then always 200. Its thread ends with the
/// test process.
pub struct Http {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    answers: Arc<Mutex<VecDeque<&'static str>>>,
}

impl Http {
    pub fn new() -> Self {
        Self::at(([127, 0, 0, 1], 0).into())
    }

    /// One at an address that was kept free for it.
    pub fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("loopback");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::new()));
        let (noted, scripted) = (seen.clone(), answers.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (noted, scripted) = (noted.clone(), scripted.clone());
                std::thread::spawn(move || serve(stream, &noted, &scripted));
            }
        });
        Http { address, seen, answers }
    }

    /// The next answers: a status line without `HTTP/1.1`, and further header lines.
    pub fn answer(&self, answers: &[&'static str]) {
        self.answers.lock().expect("whole").extend(answers);
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("whole").clone()
    }
}

fn serve(
    stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answers: &Mutex<VecDeque<&'static str>>,
) -> Option<()> {
    let mut out = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((key, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((key.to_owned(), value.to_owned()));
        }
        let mut request = Request { method, path, headers, body: Vec::new(), at: Instant::now() };
        let length = request.header("content-length").and_then(|text| text.parse().ok());
        request.body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut request.body).ok()?;
        seen.lock().expect("whole").push(request);
        let answer = answers.lock().expect("whole").pop_front().unwrap_or("200 OK");
        write!(out, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

/// A server that takes mail; what it answers to the first recipients can be scripted.
pub struct Smtp {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Smtp {
    pub fn new(recipients: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::from(recipients.to_vec())));
        let noted = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                talk(stream, &noted, &answers);
            }
        });
        Smtp { address, seen }
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("whole").clone()
    }
}

fn talk(
    stream: TcpStream,
    seen: &Mutex<Vec<String>>,
    answers: &Mutex<VecDeque<&'static str>>,
) -> Option<()> {
    let mut out = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    out.write_all(b"220 sink\r\n").ok()?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let word = line.split([' ', ':', '\r']).next()?.to_ascii_uppercase();
        let answer = match word.as_str() {
            "EHLO" => "250 sink",
            "RCPT" => answers.lock().expect("whole").pop_front().unwrap_or("250 OK"),
            "QUIT" => "221 bye",
            "DATA" => {
                out.write_all(b"354 go on\r\n").ok()?;
                let mut text = String::new();
                while !text.ends_with("\r\n.\r\n") {
                    if reader.read_line(&mut text).ok()? == 0 {
                        return None;
                    }
                }
                seen.lock().expect("whole").push(text);
                "250 taken"
            }
            _ => "250 OK",
        };
        out.write_all(format!("{answer}\r\n").as_bytes()).ok()?;
        if word == "QUIT" {
            return None;
        }
    }
}

/// Waits for a condition; fails with `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "still not so after {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
