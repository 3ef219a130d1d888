//! Holds many connections of an HTTP server without useful requests.

use std::{
    io::{ErrorKind, Write as _},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::Duration,
};

/// Holds `count` connections, each in one of five ways, or with the beginning of a TLS handshake; reopens those that
/// the server closes.
pub(crate) fn hold(address: SocketAddr, count: usize, tls: bool) -> ! {
    let mut all: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    loop {
        for (number, place) in all.iter_mut().enumerate() {
            if !place.as_ref().is_some_and(is_open) {
                // A refused connection is tried again.
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
        // The header of a handshake record whose 512 bytes never follow (RFC 8446, section 5.1).
        None => "\x16\x03\x01\x02\0".to_owned(),
        Some(0) => String::new(),
        Some(1) => "GET /healthz HTTP/1.1\r\nHost: loc".to_owned(),
        // It reads none of these answers.
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
