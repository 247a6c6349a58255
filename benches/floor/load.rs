//! The load: one thread that never sleeps, over any number of connections of either kind. As fast as the server can, or at
//! a rate; then latency counts from the moment at which a request was due (coordinated omission).

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Registry, Token};

use crate::report::Cell;

/// Where, and what is sent.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: Address,
    /// One after the other, and then from the first again.
    pub(crate) requests: Vec<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// How requests follow one another.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// The next when the one before is answered.
    Closed,
    /// So many a second, whatever the server does.
    Open { rate: f64 },
    /// As `Closed`, each request once.
    Once,
}

/// What came of a run.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) took: Duration,
    pub(crate) latencies: Vec<Duration>,
}

impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }
}

trait Stream: Read + Write + Source {}
impl<T: Read + Write + Source> Stream for T {}

struct Connection {
    stream: Box<dyn Stream>,
    /// When the request that is under way was due.
    due: Option<Instant>,
    /// Of the answer: what has come, and how much there will be.
    came: usize,
    whole: Option<usize>,
    head: Vec<u8>,
    /// Which request, and how much of it is left to be sent.
    request: usize,
    unsent: usize,
}

/// A number of connections to one server.
pub(crate) struct Load<'a> {
    target: &'a Target,
    poll: Poll,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    keep_alive: bool,
    buffer: Vec<u8>,
}

impl<'a> Load<'a> {
    pub(crate) fn new(target: &'a Target, cell: Cell) -> Self {
        let poll = Poll::new().unwrap();
        let connections =
            (0..cell.connections).map(|index| connect(&target.address, index, poll.registry())).collect();
        let idle = (0..cell.connections).rev().collect();
        Self { target, poll, connections, idle, keep_alive: cell.keep_alive, buffer: vec![0; 256 << 10] }
    }

    /// Sends requests for so long, and waits for the last answers.
    pub(crate) fn run(mut self, pace: Pace, length: Duration) -> Outcome {
        let start = Instant::now();
        let requests = self.target.requests.len();
        let mut outcome = Outcome::default();
        let mut events = Events::with_capacity(1024);
        let mut sent = 0_u64;
        loop {
            let now = Instant::now();
            let is_over = now >= start + length || (matches!(pace, Pace::Once) && sent >= requests as u64);
            if is_over && (self.idle.len() == self.connections.len() || now > start + length * 4) {
                break;
            }
            while !is_over && !self.idle.is_empty() {
                let due = match pace {
                    Pace::Closed | Pace::Once => now,
                    Pace::Open { rate } => start + Duration::from_secs_f64(sent as f64 / rate),
                };
                if due > now {
                    break;
                }
                let index = self.idle.pop().unwrap();
                self.begin(index, (sent % requests as u64) as usize, due);
                sent += 1;
            }
            self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            for event in &events {
                let index = event.token().0;
                if event.is_writable() {
                    self.send(index);
                }
                if event.is_readable() && self.receive(index) {
                    let connection = &mut self.connections[index];
                    if let Some(due) = connection.due.take() {
                        outcome.requests += 1;
                        outcome.latencies.push(due.elapsed());
                    }
                    if !self.keep_alive {
                        *connection = connect(&self.target.address, index, self.poll.registry());
                    }
                    self.idle.push(index);
                }
            }
        }
        outcome.took = start.elapsed();
        outcome
    }

    fn begin(&mut self, index: usize, request: usize, due: Instant) {
        let connection = &mut self.connections[index];
        connection.due = Some(due);
        (connection.request, connection.unsent) = (request, self.target.requests[request].len());
        (connection.came, connection.whole) = (0, None);
        connection.head.clear();
        self.send(index);
    }

    fn send(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let request = &self.target.requests[connection.request];
        while connection.unsent > 0 {
            let from = request.len() - connection.unsent;
            match connection.stream.write(&request[from..]) {
                Ok(count) => connection.unsent -= count,
                // A connection that is not open yet says so, and then that it is writable.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Takes what is there; true when the answer is whole.
    fn receive(&mut self, index: usize) -> bool {
        let connection = &mut self.connections[index];
        loop {
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => panic!("the server hung up"),
                Ok(count) => connection.take(&self.buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return connection.whole.is_some_and(|whole| connection.came >= whole);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Connection {
    fn take(&mut self, bytes: &[u8]) {
        self.came += bytes.len();
        if self.whole.is_some() {
            return;
        }
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else { return };
        let head = std::str::from_utf8(&self.head[..end]).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let length = head.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap();
        self.whole = Some(end + 4 + length.parse::<usize>().unwrap());
    }
}

fn connect(address: &Address, index: usize, registry: &Registry) -> Connection {
    let mut stream: Box<dyn Stream> = match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(*address).unwrap();
            let _ = stream.set_nodelay(true);
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                // The queue of those who have not been accepted is full.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }),
    };
    registry.register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE).unwrap();
    Connection { stream, due: None, came: 0, whole: None, head: Vec::new(), request: 0, unsent: 0 }
}
