//! Finds who is at the other end of a TCP connection: the user of a process on this host, otherwise the network.
//!
//! All users of a host share 127.0.0.1, so with limits by address one user could use up the share of another. The
//! kernel names the user of a socket (sock_diag(7), `NETLINK_SOCK_DIAG`): one exact look-up, answered in the call that
//! asks.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// A client for the sharing of places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// A user of this host.
    User(u32),
    /// An address; of IPv6 the first 64 bits, since a peer can choose the rest.
    Network(IpAddr),
}

/// Asks the kernel; without its answer, a peer is known by its address only.
#[derive(Debug)]
pub(crate) struct Peers {
    netlink: Option<OwnedFd>,
}

/// `SOCK_DIAG_BY_FAMILY` and `NLM_F_REQUEST` (linux/sock_diag.h, linux/netlink.h).
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
/// `IPPROTO_TCP`, `AF_INET`, `AF_INET6`.
const TCP: u8 = 6;
const INET: u8 = 2;
const INET6: u8 = 10;
/// `struct nlmsghdr` and `struct inet_diag_req_v2` (linux/inet_diag.h).
const HEADER: usize = 16;
const QUESTION: usize = HEADER + 56;
/// `idiag_uid` in `struct inet_diag_msg`, after four bytes, the socket's id and three counters.
const UID: usize = HEADER + 4 + 48 + 12;

impl Peers {
    /// Opens the netlink socket, if the sandbox allows it.
    pub(crate) fn new() -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let opened = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG));
        let netlink = opened
            .inspect_err(|error| tracing::info!("users of this host count as one on its HTTP address: {error}"))
            .ok();
        Self { netlink }
    }

    /// The peer that has connected from `remote` to `local`.
    pub(crate) fn of(&self, local: SocketAddr, remote: SocketAddr) -> Peer {
        let (here, there) = (local.ip().to_canonical(), remote.ip().to_canonical());
        let user = if there.is_loopback() || here == there {
            self.user((there, remote.port()), (here, local.port()))
        } else {
            None
        };
        user.map_or_else(|| Peer::Network(network(there)), Peer::User)
    }

    /// The user whose socket has the first address and is connected to the second.
    fn user(&self, own: (IpAddr, u16), other: (IpAddr, u16)) -> Option<u32> {
        let netlink = self.netlink.as_ref()?;
        send(netlink, &question(own, other), SendFlags::empty()).ok()?;
        let mut answer = [0; 512];
        // The answer is ready when the send returns. Other messages answer an earlier question and are skipped.
        while let Ok((length, _)) = recv(netlink, &mut answer, RecvFlags::DONTWAIT) {
            if let Some(user) = answer.get(..length).and_then(|answer| told(answer, own.1, other.1)) {
                return Some(user);
            }
        }
        None
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

fn question(own: (IpAddr, u16), other: (IpAddr, u16)) -> [u8; QUESTION] {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => {
            let mut all = [0; 16];
            all[..4].copy_from_slice(&address.octets());
            all
        }
        IpAddr::V6(address) => address.octets(),
    };
    let mut all = [0; QUESTION];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        all[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&(QUESTION as u32).to_ne_bytes());
    put(&BY_FAMILY.to_ne_bytes());
    put(&REQUEST.to_ne_bytes());
    put(&[0; 8]);
    put(&[if own.0.is_ipv4() { INET } else { INET6 }, TCP, 0, 0]);
    // Any state of the socket.
    put(&u32::MAX.to_ne_bytes());
    put(&own.1.to_be_bytes());
    put(&other.1.to_be_bytes());
    put(&octets(own.0));
    put(&octets(other.0));
    put(&0u32.to_ne_bytes());
    // No cookie.
    put(&[0xff; 8]);
    all
}

/// The user in an answer about the socket with these ports; `None` for an error or another socket.
fn told(answer: &[u8], own: u16, other: u16) -> Option<u32> {
    let field = |at: usize| answer.get(at..at + 2)?.try_into().ok();
    let is_answer = u16::from_ne_bytes(field(4)?) == BY_FAMILY;
    let is_ours = (u16::from_be_bytes(field(HEADER + 4)?), u16::from_be_bytes(field(HEADER + 6)?)) == (own, other);
    let user = answer.get(UID..UID + 4)?.try_into().ok().map(u32::from_ne_bytes);
    user.filter(|_| is_answer && is_ours)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_process_of_this_host_is_known_by_its_user() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            // Not every machine has IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let to = match listener.local_addr().expect("bound") {
                address if address.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], address.port())),
                address => address,
            };
            let client = TcpStream::connect(to).expect("connected");
            let (stream, remote) = listener.accept().expect("accepted");
            let peers = Peers::new();
            let local = stream.local_addr().expect("connected");
            let own = rustix::process::geteuid().as_raw();
            if peers.netlink.is_some() {
                assert_eq!(peers.of(local, remote), Peer::User(own), "{address}");
            }
            // Without an answer only the address is known.
            let blind = Peers { netlink: None };
            assert_eq!(blind.of(local, remote), Peer::Network(network(to.ip())), "{address}");
            drop(client);
        }
    }

    #[test]
    fn the_user_of_another_socket_is_no_answer_and_neither_is_garbage() {
        let mut answer = vec![0; UID + 4];
        answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        answer[HEADER + 4..HEADER + 8].copy_from_slice(&[0x1f, 0x90, 0, 80]);
        answer[UID..].copy_from_slice(&1000u32.to_ne_bytes());
        assert_eq!(told(&answer, 8080, 80), Some(1000));
        assert_eq!(told(&answer, 8081, 80), None);
        assert_eq!(told(&answer, 8080, 81), None);
        for length in 0..answer.len() {
            assert_eq!(told(&answer[..length], 8080, 80), None);
        }
        // NLMSG_ERROR.
        answer[4..6].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(told(&answer, 8080, 80), None);
    }

    #[test]
    fn one_network_of_ipv6_is_one_peer() {
        let peers = Peers { netlink: None };
        let local = "[2001:db8::1]:9669".parse().expect("an address");
        let of = |remote: &str| peers.of(local, remote.parse().expect("an address"));
        assert_eq!(of("[2001:db8:0:1::2]:5"), of("[2001:db8:0:1:ffff::3]:6"));
        assert_ne!(of("[2001:db8:0:1::2]:5"), of("[2001:db8:0:2::2]:5"));
        assert_ne!(of("10.0.0.1:5"), of("10.0.0.2:5"));
    }
}
