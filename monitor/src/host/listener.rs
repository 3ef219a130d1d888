//! Listening sockets with a backlog that holds a burst of connections.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel queues until they are accepted: its default maximum (`net.core.somaxconn`, 4,096 from
/// Linux 5.4 on). The client's kernel retries one that finds no room after a second.
const BACKLOG: u32 = 4096;

/// Listens on an address.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A connection of an agent that has ended may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_address_is_an_error_and_both_families_are_listened_on() {
        let first = listen(([127, 0, 0, 1], 0).into()).expect("a free port");
        let taken = first.local_addr().expect("bound");
        assert_eq!(listen(taken).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
        if let Ok(second) = listen("[::1]:0".parse().expect("an address")) {
            assert!(second.local_addr().expect("bound").is_ipv6());
        }
    }
}
