//! Connections that hold places of an HTTP server and let it do nothing useful with them.

use std::{
    io::{ErrorKind, Write as _},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::Duration,
};

/// Holds so many connections, each in one of five ways, or with the begin of a TLS handshake; what the server closes is opened again.
pub(crate) fn hold(address: SocketAddr, count: usize, tls: bool) -> ! {
    let mut all: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    loop {
        for (number, place) in all.iter_mut().enumerate() {
            if !place.as_ref().is_some_and(is_open) {
                // One that is refused is tried again.
                *place = open(address, (!tls).then_some(number)).ok();
            }
        }
        sleep(Duration::from_millis(5));
    }
}

fn open(address: SocketAddr, number: Option<usize>) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nonblocking(true)?;
    let whole = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let bytes = match number.map(|number| number % 5) {
        // A record of a handshake, 512 bytes of which do not come (RFC 8446, section 5.1).
        None => "\x16\x03\x01\x02\0".to_owned(),
        Some(0) => String::new(),
        Some(1) => "GET /healthz HTTP/1.1\r\nHost: loc".to_owned(),
        // Of these it reads no answer.
        Some(2) => whole("/metrics").repeat(100),
        Some(3) => whole("/").repeat(100),
        Some(_) => whole("/api/v1/events"),
    };
    stream.write_all(bytes.as_bytes())?;
    Ok(stream)
}

fn is_open(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
