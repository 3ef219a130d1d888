//! A small web server with the ills that a real one can get, each on request.
//!
//! * `/leak`: takes memory until it is killed, and answers meanwhile; `/leak/KIB`: takes KIB each second
//! * `/hold/MIB`: takes MIB and keeps them; `/release`: gives them back
//! * `/slow/MS`: is answered after MS milliseconds
//! * `/sick`, `/well`: from then on `/healthz` fails, or does not
//! * `/crash`: reads from address zero; after `/hold/MIB` the core has that size
//! * `/survive`: sends itself the same signal while it is blocked, and answers
//! * everything else: is answered

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{sleep, spawn},
    time::Duration,
};

use crate::{faults, memory};

/// A request is no longer than this, and comes within that time.
const REQUEST_MAX: usize = 8192;
const PATIENCE: Duration = Duration::from_secs(5);

static HELD: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static SICK: AtomicBool = AtomicBool::new(false);

/// Serves on this port of loopback until something ends it.
pub(crate) fn serve(port: u16) -> ! {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is free");
    loop {
        if let Ok((stream, _)) = listener.accept() {
            // Whoever goes before it is answered has what it wanted.
            spawn(move || answer(stream).ok());
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") && request.len() < REQUEST_MAX {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            count => request.extend_from_slice(&part[..count]),
        }
    }
    let text = String::from_utf8_lossy(&request);
    let path = text.split(' ').nth(1).unwrap_or_default();
    let healthy = match path {
        "/leak" => {
            spawn(|| memory::leak());
            true
        }
        "/release" => {
            *HELD.lock().expect("whole") = Vec::new();
            true
        }
        "/sick" | "/well" => {
            SICK.store(path == "/sick", Ordering::Relaxed);
            true
        }
        "/crash" => faults::read_address_zero(),
        "/survive" => {
            faults::send_what_is_blocked();
            true
        }
        "/healthz" => !SICK.load(Ordering::Relaxed),
        _ => {
            if let Some(mib) = path.strip_prefix("/hold/").and_then(|mib| mib.parse::<usize>().ok()) {
                *HELD.lock().expect("whole") = vec![1; mib << 20];
            }
            if let Some(kib) = path.strip_prefix("/leak/").and_then(|kib| kib.parse().ok()) {
                spawn(move || memory::leak_slowly(0, kib));
            }
            if let Some(milliseconds) = path.strip_prefix("/slow/").and_then(|text| text.parse().ok()) {
                sleep(Duration::from_millis(milliseconds));
            }
            true
        }
    };
    let status = if healthy { "200 OK" } else { "503 Service Unavailable" };
    let pid = std::process::id().to_string();
    let length = pid.len();
    // At once: in pieces, each would wait until the one before is acknowledged.
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{pid}");
    stream.write_all(answer.as_bytes())
}
