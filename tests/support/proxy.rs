//! A proxy between the daemon and moto that makes moto's answers go wrong.

use std::ops::Deref;

use super::client::{Address, Connection};
use super::faults::Server;

/// The proxy. Stops when dropped.
pub struct FaultProxy {
    server: Server,
}

impl Deref for FaultProxy {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl FaultProxy {
    /// Stands before a server on this port of loopback.
    pub fn before(port: u16) -> Self {
        let server = Server::start(move |request| async move {
            let mut connection = Connection::open(&Address::Tcp(port)).await.unwrap();
            connection.send(&request.raw).await.unwrap();
            let answer = connection.answer(false).await.unwrap().unwrap();
            (answer.status, answer.json())
        });
        Self { server }
    }
}
