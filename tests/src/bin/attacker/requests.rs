//! Holds many connections to a server, and asks it under a foreign name.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::Duration,
};

use crate::ready;

/// Pause between two bytes of a request: shorter than any server's timeout for a head.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for a server.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time in which a server on this host accepts a connection.
const AT_ONCE: Duration = Duration::from_millis(200);
/// After this many refused connections in a row the server is full.
const REFUSED: u32 = 3;

/// Keeps `count` connections open: each with half a request that grows by a byte a second, or with whole requests for
/// `unread` whose answers are never read. Reopens those that the server closes.
pub(crate) fn hold(address: SocketAddr, count: usize, unread: Option<&str>) -> ! {
    let mut connections: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    let mut is_first = true;
    loop {
        let mut refused = 0;
        for connection in &mut connections {
            if !connection.as_mut().is_some_and(|stream| goes_on(stream, unread.is_some())) {
                *connection = (refused < REFUSED).then(|| open(address, unread)).flatten();
                refused = if connection.is_some() { 0 } else { refused + 1 };
            }
        }
        if is_first {
            ready();
            is_first = false;
        }
        sleep(PAUSE);
    }
}

/// Sends one more byte of an unfinished request; false once the server has closed the connection.
fn goes_on(stream: &mut TcpStream, is_whole: bool) -> bool {
    is_open(stream) && (is_whole || stream.write_all(b"x").is_ok())
}

fn open(address: SocketAddr, unread: Option<&str>) -> Option<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, AT_ONCE).ok()?;
    let request = match unread {
        // Many times the same request: unread answers fill all buffers.
        Some(path) => format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").repeat(64),
        None => format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nX-Slow: "),
    };
    stream.write_all(request.as_bytes()).ok()?;
    stream.set_nonblocking(unread.is_none()).ok()?;
    Some(stream)
}

/// False once the other side has closed it.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).ok();
    // A peek at a closed connection returns 0, at a reset one an error.
    match stream.peek(&mut [0]) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

/// Status of the answer to a GET of `path` with `host` as its `Host:`.
pub(crate) fn status_as(address: SocketAddr, host: &str, path: &str) -> u16 {
    let mut stream = TcpStream::connect(address).expect("the agent listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("it can be asked");
    let mut head = Vec::new();
    stream.take(16).read_to_end(&mut head).expect("it answers");
    let text = String::from_utf8_lossy(&head);
    text.split(' ').nth(1).and_then(|word| word.trim().parse().ok()).unwrap_or_else(|| panic!("no status: {text}"))
}
