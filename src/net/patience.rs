//! How long a peer may take to send the head of a request and to read an answer, however it spreads its bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::connection::Activity;
use super::listener::Stream;

/// How long a peer may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// To send the whole head of a request, from its first byte on.
    pub head: Duration,
    /// To read a whole answer, from the moment on when the kernel takes no more of it.
    pub answer: Duration,
}

/// A stream that ends with an error when its peer is too slow. No timer runs while nobody waits.
pub(super) struct Timed {
    stream: Stream,
    patience: Patience,
    activity: Arc<Activity>,
    /// The number of requests before the one of which a part has been read.
    partial: Option<u64>,
    head: Option<Pin<Box<Sleep>>>,
    answer: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    pub(super) fn new(stream: Stream, patience: Patience, activity: Arc<Activity>) -> Self {
        Self { stream, patience, activity, partial: None, head: None, answer: None }
    }

    /// What a write came to; one that waits does not wait for ever.
    fn written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.activity.set_sending(true);
            ready!(expired(&mut self.answer, self.patience.answer, cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        written
    }
}

/// Whether a timer has run out; starts it where there is none.
fn expired(timer: &mut Option<Pin<Box<Sleep>>>, after: Duration, cx: &mut Context<'_>) -> Poll<()> {
    timer.get_or_insert_with(|| Box::pin(sleep(after))).as_mut().poll(cx)
}

impl AsyncRead for Timed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let so_far = this.activity.so_far();
        if read.is_ready() {
            if buf.filled().len() > before && this.partial != Some(so_far) {
                (this.partial, this.head) = (Some(so_far), None);
            }
            return read;
        }
        if this.partial == Some(so_far) && !this.activity.is_busy() {
            ready!(expired(&mut this.head, this.patience.head, cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        this.head = None;
        Poll::Pending
    }
}

impl AsyncWrite for Timed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when all of an answer is written.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.answer.take().is_some() {
            this.activity.set_sending(false);
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
