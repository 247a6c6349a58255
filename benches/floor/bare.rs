//! The floor: hyper, and nothing that thinks. It sends the headers of a hit and a body of the size that is asked for.

#[path = "../../tests/support/bare.rs"]
mod head;

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::servers::SIZES;

/// The first argument of a process that is such a server.
pub(crate) const MODE: &str = "serve-bare";

/// Serves on a TCP port and a Unix socket, the size of the body being the last part of the path.
pub(crate) fn serve(arguments: &[String]) {
    let [port, path] = arguments else { panic!("a port and a path") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tcp = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).await.unwrap();
        let unix = UnixListener::bind(path).unwrap();
        loop {
            tokio::select! {
                accepted = tcp.accept() => {
                    let (stream, _) = accepted.unwrap();
                    stream.set_nodelay(true).unwrap();
                    tokio::spawn(connection(stream));
                }
                accepted = unix.accept() => drop(tokio::spawn(connection(accepted.unwrap().0))),
            }
        }
    });
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let bodies = SIZES.map(|size| Bytes::from(vec![b'x'; size]));
    let answer = service_fn(move |request: Request<Incoming>| {
        let size = request.uri().path().rsplit('/').next().and_then(|size| size.parse().ok()).unwrap_or(0);
        let body = bodies.iter().find(|body| body.len() == size).cloned().unwrap_or_default();
        let mut response = Response::new(Full::new(body));
        head::add_head(response.headers_mut());
        async { Ok::<_, Infallible>(response) }
    });
    let _ =
        http1::Builder::new().auto_date_header(false).serve_connection(TokioIo::new(stream), answer).await;
}
