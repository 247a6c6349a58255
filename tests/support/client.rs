//! An HTTP/1.1 client over bare sockets: it sends what it is told, well-formed or not.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// Where a server is.
#[derive(Debug, Clone)]
pub enum Address {
    Unix(PathBuf),
    Tcp(u16),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value; empty if absent.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The `code` of a problem.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        super::leaks::check("a problem", &self.body);
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{self:?}");
        problem["code"].as_str().unwrap().to_owned()
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection that can be used again and again.
pub struct Connection {
    stream: Box<dyn Stream>,
    read: Vec<u8>,
}

impl Connection {
    pub async fn open(address: &Address) -> std::io::Result<Self> {
        let stream: Box<dyn Stream> = match address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        Ok(Self { stream, read: Vec::new() })
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads one answer; `None` if the server closes instead.
    pub async fn answer(&mut self, to_head: bool) -> std::io::Result<Option<Answer>> {
        timeout(PATIENCE, self.read_answer(to_head)).await.expect("no answer in time")
    }

    /// One `GET` with these headers.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Answer> {
        self.request("GET", path, headers).await
    }

    /// One request without a body.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> std::io::Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes()).await?;
        let closed = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        self.answer(method == "HEAD").await?.ok_or_else(closed)
    }

    /// Whether the server has closed the connection, or does within the time, and says no more.
    pub async fn closes_within(&mut self, patience: Duration) -> bool {
        let mut rest = [0; 1];
        self.read.is_empty()
            && matches!(timeout(patience, self.stream.read(&mut rest)).await, Ok(Ok(0) | Err(_)))
    }

    async fn read_answer(&mut self, to_head: bool) -> std::io::Result<Option<Answer>> {
        let head_end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if self.fill().await? == 0 {
                return if self.read.is_empty() {
                    Ok(None)
                } else {
                    Err(std::io::ErrorKind::UnexpectedEof.into())
                };
            }
        };
        let head = String::from_utf8(self.read.drain(..head_end).collect()).unwrap();
        let mut lines = head.lines();
        let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length =
            if to_head || status == 304 { 0 } else { answer.header("content-length").parse().unwrap_or(0) };
        while self.read.len() < length {
            if self.fill().await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        answer.body = self.read.drain(..length).collect();
        Ok(Some(answer))
    }

    async fn fill(&mut self) -> std::io::Result<usize> {
        let mut chunk = vec![0; 16 << 10];
        let count = self.stream.read(&mut chunk).await?;
        self.read.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

/// One `GET` over a connection of its own.
pub async fn get(address: &Address, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut connection = Connection::open(address).await.unwrap();
    connection.get(path, headers).await.unwrap()
}

/// One request of AWS JSON 1.1, as an SDK sends it but unsigned.
pub async fn aws_json(port: u16, action: &str, body: &serde_json::Value) -> Answer {
    aws_json_as(port, "AKIAIOSFODNN7EXAMPLE", "us-west-2", action, body).await
}

/// The same by this access key id, for this region.
pub async fn aws_json_as(
    port: u16,
    access_key_id: &str,
    region: &str,
    action: &str,
    body: &serde_json::Value,
) -> Answer {
    let body = body.to_string();
    let credential = format!("{access_key_id}/20260101/{region}/secretsmanager/aws4_request");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/x-amz-json-1.1\r\n\
         X-Amz-Target: secretsmanager.{action}\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut connection = Connection::open(&Address::Tcp(port)).await.unwrap();
    connection.send(request.as_bytes()).await.unwrap();
    connection.answer(false).await.unwrap().unwrap()
}
