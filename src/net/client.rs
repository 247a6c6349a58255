//! A client for one request, for the commands that talk to a daemon. What answers may be anything, so its patience
//! and its memory have bounds.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::http::response::Parts;
use hyper::{Request, http};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Where a daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot connect to {endpoint}: {error}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// What the system says.
        error: io::Error,
    },
    /// A request that HTTP cannot express.
    #[error("the request is malformed: {0}")]
    Request(#[from] http::Error),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// An answer that no daemon of ours gives.
    #[error("the answer has more than {MAX_BODY} bytes")]
    TooLong,
    /// No answer in time.
    #[error("no answer within {:.0} s", .0.as_secs_f64())]
    Timeout(Duration),
}

/// More than any read takes with the timeouts that a daemon can sensibly have.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The daemon is on this node: whoever has not accepted by then is not there.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// A secret has 64 KiB at most, and JSON makes it six times that at worst.
const MAX_BODY: usize = 1 << 20;

/// Sends one `GET` and reads the whole answer.
pub async fn fetch(
    endpoint: &Endpoint,
    path_and_query: &str,
    headers: &[(&str, &str)],
    patience: Duration,
) -> Result<(Parts, Bytes), ClientError> {
    let exchange = async {
        match endpoint {
            Endpoint::Unix(path) => {
                let stream = connected(endpoint, UnixStream::connect(path)).await?;
                request(stream, "localhost", path_and_query, headers).await
            }
            Endpoint::Tcp(address) => {
                let stream = connected(endpoint, TcpStream::connect(address)).await?;
                request(stream, address, path_and_query, headers).await
            }
        }
    };
    timeout(patience, exchange).await.unwrap_or(Err(ClientError::Timeout(patience)))
}

async fn connected<S>(
    endpoint: &Endpoint,
    connecting: impl Future<Output = io::Result<S>>,
) -> Result<S, ClientError> {
    let outcome = timeout(CONNECT_PATIENCE, connecting).await;
    outcome
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| ClientError::Connect { endpoint: endpoint.clone(), error })
}

async fn request(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path_and_query: &str,
    headers: &[(&str, &str)],
) -> Result<(Parts, Bytes), ClientError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::get(path_and_query).header(HOST, host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await;
    driver.abort();
    match body {
        Ok(body) => Ok((head, body.to_bytes())),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => ClientError::Broken(*error),
            Err(_) => ClientError::TooLong,
        }),
    }
}
