//! A client for one request, for the commands that talk to a daemon.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
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

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot connect to {endpoint}: {error}", endpoint = describe(.endpoint))]
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
    /// No answer in time.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Timeout,
}

/// More than any read takes with the timeouts that a daemon can sensibly have.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends one `GET` and reads the whole answer.
pub async fn fetch(
    endpoint: &Endpoint,
    path_and_query: &str,
    headers: &[(&str, &str)],
) -> Result<(Parts, Bytes), ClientError> {
    let refused = |error| ClientError::Connect { endpoint: endpoint.clone(), error };
    let exchange = async {
        match endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(refused)?;
                request(stream, "localhost", path_and_query, headers).await
            }
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(refused)?;
                request(stream, address, path_and_query, headers).await
            }
        }
    };
    timeout(PATIENCE, exchange).await.unwrap_or(Err(ClientError::Timeout))
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
    let body = body.collect().await?.to_bytes();
    driver.abort();
    Ok((head, body))
}

fn describe(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Unix(path) => path.display().to_string(),
        Endpoint::Tcp(address) => address.clone(),
    }
}
