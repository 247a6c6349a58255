//! A server of AWS JSON 1.1 whose answers go wrong on command, and which remembers every call: the fake in this
//! process and the proxy in front of moto are both one of these.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::ARN;

const AWS_JSON: &str = "application/x-amz-json-1.1";

/// What may go wrong with every answer, until told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Right, but late.
    Delay(Duration),
    /// No answer, the connection stays open.
    Hang,
    /// Byte by byte, for ever so long.
    Drip,
    /// Connections are refused.
    Refuse,
    /// The connection is reset before the answer.
    ResetBefore,
    /// The connection is reset in the middle of the answer.
    ResetMiddle,
    /// The connection is closed in the middle of the answer.
    Truncate,
    /// 400 `ThrottlingException`.
    Throttle400,
    /// 429 without a code.
    Throttle429,
    /// 500 `InternalServiceError`.
    Http500,
    /// A bare 503.
    Http503,
    /// 200 with half a JSON document.
    Garble,
    /// 200 with `{}`.
    EmptyObject,
    /// 403 with HTML, as of a proxy.
    Html403,
    /// The answer for another secret.
    WrongSecret,
    /// 400 `ExpiredTokenException`.
    ExpiredToken,
}

/// A call as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub action: String,
    pub body: Value,
    /// The region for which it is signed.
    pub region: String,
    /// The access key id by which it is signed.
    pub access_key_id: String,
    /// All of it.
    pub raw: Vec<u8>,
}

impl Request {
    /// The secrets that it is about.
    pub fn ids(&self) -> Vec<String> {
        let list = self.body["SecretIdList"].as_array().into_iter().flatten();
        let ids = list.chain(self.body.get("SecretId"));
        ids.filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

/// A call that was made.
#[derive(Debug, Clone)]
pub struct Call {
    pub at: Instant,
    pub action: String,
    pub ids: Vec<String>,
    pub region: String,
    pub access_key_id: String,
}

/// The most calls that any second saw, less what calls may be late on their way here.
pub fn busiest_second(log: &[Call]) -> usize {
    let second = Duration::from_millis(900);
    let from = |first: usize| log[first..].iter().take_while(|call| call.at < log[first].at + second).count();
    (0..log.len()).map(from).max().unwrap_or(0)
}

type Answering = Pin<Box<dyn Future<Output = (u16, Value)> + Send>>;
type Answerer = Arc<dyn Fn(Request) -> Answering + Send + Sync>;

/// The server. Stops when dropped.
pub struct Server {
    port: u16,
    answerer: Answerer,
    conduct: Arc<Mutex<Conduct>>,
    listening: Mutex<Option<JoinSet<()>>>,
}

/// How it behaves, and what it has seen.
#[derive(Default)]
struct Conduct {
    fault: Option<Fault>,
    by_region: HashMap<String, Fault>,
    latency: Duration,
    /// Calls in any second beyond this are throttled.
    quota: Option<usize>,
    /// By how many seconds its clock is behind.
    behind: i64,
    calls: Vec<Call>,
}

impl Server {
    /// Starts on a free port of loopback; `answerer` has the status and body of right answers.
    pub fn start<F: Future<Output = (u16, Value)> + Send + 'static>(
        answerer: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Self {
        let answerer: Answerer = Arc::new(move |request| Box::pin(answerer(request)));
        let (conduct, listening) = (Arc::default(), Mutex::default());
        let socket = bound(0);
        let port = socket.local_addr().unwrap().port();
        let server = Self { port, answerer, conduct, listening };
        server.listen_on(socket);
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Has every answer from now on go wrong in this way, or right.
    pub fn fail(&self, fault: Option<Fault>) {
        let before = std::mem::replace(&mut self.conduct().fault, fault);
        if fault == Some(Fault::Refuse) {
            self.refuse();
        } else if before == Some(Fault::Refuse) {
            self.listen();
        }
    }

    /// The same for one region.
    pub fn fail_in(&self, region: &str, fault: Option<Fault>) {
        let by_region = &mut self.conduct().by_region;
        match fault {
            Some(fault) => by_region.insert(region.to_owned(), fault),
            None => by_region.remove(region),
        };
    }

    /// How long every answer takes from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.conduct().latency = latency;
    }

    /// Throttles what is more than this in any second.
    pub fn set_quota(&self, quota: Option<usize>) {
        self.conduct().quota = quota;
    }

    /// By how many seconds its clock is behind from now on.
    pub fn set_behind(&self, seconds: i64) {
        self.conduct().behind = seconds;
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.conduct().calls.len()
    }

    /// Every call, in order.
    pub fn log(&self) -> Vec<Call> {
        self.conduct().calls.clone()
    }

    /// Forgets the calls so far.
    pub fn clear_log(&self) {
        self.conduct().calls.clear();
    }

    /// Every action that was called.
    pub fn actions(&self) -> Vec<String> {
        let mut actions: Vec<String> = self.conduct().calls.iter().map(|call| call.action.clone()).collect();
        actions.sort();
        actions.dedup();
        actions
    }

    /// Stops listening and breaks all connections: from now on they are refused.
    pub fn refuse(&self) {
        *self.listening.lock().unwrap() = None;
    }

    /// Listens again, on the same port.
    pub fn listen(&self) {
        self.listen_on(bound(self.port));
    }

    fn listen_on(&self, socket: TcpSocket) {
        let listener = socket.listen(4096).unwrap();
        let (answerer, conduct) = (Arc::clone(&self.answerer), Arc::clone(&self.conduct));
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&answerer), Arc::clone(&conduct)));
                while connections.try_join_next().is_some() {}
            }
        });
        *self.listening.lock().unwrap() = Some(listening);
    }

    fn conduct(&self) -> MutexGuard<'_, Conduct> {
        self.conduct.lock().unwrap()
    }
}

fn bound(port: u16) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    socket
}

impl Conduct {
    /// Notes a call; what is wrong with its answer, and how long that takes.
    fn note(&mut self, request: &Request) -> (Option<Fault>, Duration) {
        let now = Instant::now();
        let recent =
            self.calls.iter().rev().take_while(|call| now < call.at + Duration::from_secs(1)).count();
        self.calls.push(Call {
            at: now,
            action: request.action.clone(),
            ids: request.ids(),
            region: request.region.clone(),
            access_key_id: request.access_key_id.clone(),
        });
        let throttled = self.quota.is_some_and(|quota| recent >= quota).then_some(Fault::Throttle400);
        let fault = self.fault.or_else(|| self.by_region.get(&request.region).copied()).or(throttled);
        (fault, self.latency)
    }
}

/// Answers the requests of one connection.
async fn serve(mut stream: TcpStream, answerer: Answerer, conduct: Arc<Mutex<Conduct>>) {
    stream.set_nodelay(true).unwrap();
    let mut read = Vec::new();
    while let Some(request) = next_request(&mut stream, &mut read).await {
        let (fault, latency) = conduct.lock().unwrap().note(&request);
        let date = date(conduct.lock().unwrap().behind);
        sleep(latency).await;
        let (status, answer) = answerer(request).await;
        if !send(&mut stream, fault, status, &date, &answer).await {
            return;
        }
    }
}

/// Sends an answer, or what a fault makes of it; whether the connection is still of use.
async fn send(stream: &mut TcpStream, fault: Option<Fault>, status: u16, date: &str, answer: &Value) -> bool {
    let whole = answer.to_string();
    let error = |code: &str| error(code, "x").1.to_string();
    let (status, content_type, body) = match fault {
        None => (status, AWS_JSON, whole),
        Some(Fault::Delay(delay)) => {
            sleep(delay).await;
            (status, AWS_JSON, whole)
        }
        Some(Fault::Hang | Fault::Refuse) => return std::future::pending().await,
        Some(Fault::ResetBefore) => {
            stream.set_zero_linger().unwrap();
            return false;
        }
        Some(fault @ (Fault::ResetMiddle | Fault::Truncate | Fault::Drip)) => {
            let (head, body) = (head(status, date, AWS_JSON, whole.len()), whole.as_bytes());
            let _ = stream.write_all(&[head.as_bytes(), &body[..body.len() / 2]].concat()).await;
            if fault == Fault::ResetMiddle {
                stream.set_zero_linger().unwrap();
            }
            for byte in body[body.len() / 2..].chunks(1).filter(|_| fault == Fault::Drip) {
                sleep(Duration::from_millis(200)).await;
                let _ = stream.write_all(byte).await;
            }
            return false;
        }
        Some(Fault::Throttle400) => (400, AWS_JSON, error("ThrottlingException")),
        Some(Fault::Throttle429) => (429, AWS_JSON, String::new()),
        Some(Fault::Http500) => (500, AWS_JSON, error("InternalServiceError")),
        Some(Fault::Http503) => (503, AWS_JSON, String::new()),
        Some(Fault::ExpiredToken) => (400, AWS_JSON, error("ExpiredTokenException")),
        Some(Fault::EmptyObject) => (200, AWS_JSON, "{}".to_owned()),
        Some(Fault::Html403) => (403, "text/html", "<html>Forbidden</html>".to_owned()),
        Some(Fault::Garble) => (200, AWS_JSON, whole[..whole.len() / 2].to_owned()),
        Some(Fault::WrongSecret) => (200, AWS_JSON, about_another(answer.clone()).to_string()),
    };
    let head = head(status, date, content_type, body.len());
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.is_ok()
}

/// What time it is by a clock that is behind.
fn date(behind: i64) -> String {
    #[expect(clippy::disallowed_methods, reason = "as AWS says it")]
    let now = DateTime::from(SystemTime::now());
    DateTime::from_secs(now.secs() - behind).fmt(Format::HttpDate).unwrap()
}

fn head(status: u16, date: &str, content_type: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nDate: {date}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         x-amzn-RequestId: 00000000-0000-4000-8000-000000000000\r\n\r\n"
    )
}

fn about_another(mut answer: Value) -> Value {
    if let Some(values) = answer["SecretValues"].as_array_mut() {
        *values = values.drain(..).map(about_another).collect();
    } else {
        answer["Name"] = json!("another");
        answer["ARN"] = json!(format!("{ARN}another-ZzZzZz"));
    }
    answer
}

/// An error as AWS has it.
pub fn error(code: &str, message: &str) -> (u16, Value) {
    (400, json!({ "__type": code, "Message": message }))
}

async fn next_request(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<Request> {
    let mut chunk = vec![0; 8 << 10];
    loop {
        if let Some(request) = complete_request(read) {
            return Some(request);
        }
        match stream.read(&mut chunk).await {
            Ok(count) if count > 0 => read.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    }
}

fn complete_request(read: &mut Vec<u8>) -> Option<Request> {
    let at = read.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&read[..at]).into_owned();
    let header = |wanted: &str| {
        let line = head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case(wanted)));
        line.map_or("", |(_, value)| value)
    };
    let length: usize = header("content-length").parse().unwrap_or(0);
    if read.len() < at + length {
        return None;
    }
    let raw: Vec<u8> = read.drain(..at + length).collect();
    let credential = header("authorization").split_once("Credential=").map_or("", |(_, rest)| rest);
    let mut scope = credential.split('/');
    let access_key_id = scope.next().unwrap_or_default().to_owned();
    let action = header("x-amz-target").strip_prefix("secretsmanager.").unwrap_or("unknown").to_owned();
    let region = scope.nth(1).unwrap_or_default().to_owned();
    let body = serde_json::from_slice(&raw[at..]).unwrap_or(Value::Null);
    Some(Request { action, body, region, access_key_id, raw })
}
