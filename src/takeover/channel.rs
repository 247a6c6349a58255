//! Messages with descriptors over a Unix socket: four bytes of length, then JSON. The descriptors come with the first byte.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// The longest message.
const MAX_BYTES: usize = 1 << 20;

/// The most descriptors that come with one.
const MAX_DESCRIPTORS: usize = 4;

const LENGTH: usize = size_of::<u32>();

#[derive(Debug)]
pub(super) struct Channel(UnixStream);

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// The user at the other end, as the kernel says.
    pub(super) fn peer(&self) -> io::Result<u32> {
        Ok(self.0.peer_cred()?.uid())
    }

    pub(super) async fn send(
        &mut self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        let length = u32::try_from(body.len()).map_err(|_| ErrorKind::InvalidInput)?;
        let bytes = [&length.to_le_bytes()[..], &body].concat();
        let sent = self.0.async_io(Interest::WRITABLE, || send_some(self.0.as_fd(), &bytes, descriptors));
        let sent = sent.await?;
        self.0.write_all(&bytes[sent..]).await
    }

    /// Waits until the other end is closed.
    pub(super) async fn closed(&mut self) {
        let mut ignored = [0; 64];
        while self.0.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
    }

    pub(super) async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut length = [0; LENGTH];
        let received =
            self.0.async_io(Interest::READABLE, || receive_some(self.0.as_fd(), &mut length)).await;
        let (count, descriptors) = received?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.0.read_exact(&mut length[count..]).await?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_BYTES {
            return Err(io::Error::new(ErrorKind::InvalidData, "the message is too long"));
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok((serde_json::from_slice(&body)?, descriptors))
    }
}

/// Sends as much as the socket takes, and all descriptors; returns how much.
fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [0; rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives up to as much as fits, and what descriptors come with it.
fn receive_some(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [0; rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((received.bytes, rights.flatten().collect()))
}
