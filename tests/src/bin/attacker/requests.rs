//! Connections that take a server's room, and names that are not its own.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::Duration,
};

use crate::ready;

/// Between two bytes of a request: within every patience that a server may have with a head.
const PAUSE: Duration = Duration::from_secs(1);
/// No server makes us wait longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A server on this host that takes connections takes them within that time.
const AT_ONCE: Duration = Duration::from_millis(200);
/// After so many in a row that it does not take, there is no room for more.
const REFUSED: u32 = 3;

/// Keeps so many connections open: each with half a request that grows by a byte a second, or with a whole one for `unread` whose
/// answer is never read. One that the server ends is made anew.
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

/// One byte more of a request, if it is one of these; false once the server has ended the connection.
fn goes_on(stream: &mut TcpStream, is_whole: bool) -> bool {
    is_open(stream) && (is_whole || stream.write_all(b"x").is_ok())
}

fn open(address: SocketAddr, unread: Option<&str>) -> Option<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, AT_ONCE).ok()?;
    let request = match unread {
        // The same again and again: what is not read fills all room on the way.
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
    // A closed one has an end to peek at; one that is reset has an error.
    match stream.peek(&mut [0]) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

/// The status that a GET of `path` is answered with, when its `Host:` is another's name.
pub(crate) fn status_as(address: SocketAddr, host: &str, path: &str) -> u16 {
    let mut stream = TcpStream::connect(address).expect("the agent listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("it can be asked");
    let mut head = Vec::new();
    stream.take(16).read_to_end(&mut head).expect("it answers");
    let text = String::from_utf8_lossy(&head);
    text.split(' ').nth(1).and_then(|word| word.trim().parse().ok()).unwrap_or_else(|| panic!("no status: {text}"))
}
