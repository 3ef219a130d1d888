//! The protocol on the guest's second serial port: the payload's output between a begin and an exit marker.
//!
//! Both markers carry a nonce of the run, so no output of a payload is taken for one by accident. A payload whose last
//! line has no newline leaves the marker in the middle of a line; what stands before it is still output.

/// What one line of the port means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// Not part of the payload's output.
    Noise,
    /// The payload starts now.
    Begin,
    /// Output of the payload, with its newline.
    Output(&'a [u8]),
    /// The payload ended with this status, after a last piece of output (often empty).
    Exit { rest: &'a [u8], status: u8 },
}

/// Reads lines in order and remembers whether the payload has begun.
pub(super) struct Console {
    marker: Vec<u8>,
    begun: bool,
}

impl Console {
    pub(super) fn new(nonce: &str) -> Self {
        Self { marker: format!("@@defib-vm {nonce} ").into_bytes(), begun: false }
    }

    /// Whether the begin marker has been read.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// Classifies the next line (with its newline, unless it is the last one of the port).
    pub(super) fn read<'a>(&mut self, line: &'a [u8]) -> Line<'a> {
        let Some(at) = line.windows(self.marker.len()).position(|window| window == self.marker) else {
            return if self.begun { Line::Output(line) } else { Line::Noise };
        };
        let words = String::from_utf8_lossy(&line[at + self.marker.len()..]);
        let mut words = words.split_whitespace();
        match (words.next(), words.next().map(str::parse)) {
            (Some("begin"), None) => {
                self.begun = true;
                Line::Begin
            }
            (Some("exit"), Some(Ok(status))) if self.begun => Line::Exit { rest: &line[..at], status },
            _ => Line::Noise, // cut off by the end of the machine
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Console, Line};

    #[test]
    fn output_is_what_stands_between_the_markers() {
        let mut console = Console::new("n1");
        assert_eq!(console.read(b"Loading Linux\n"), Line::Noise);
        assert!(!console.begun());
        assert_eq!(console.read(b"@@defib-vm n1 begin\n"), Line::Begin);
        assert_eq!(console.read(b"hello \xff\n"), Line::Output(b"hello \xff\n"));
        assert_eq!(console.read(b"\n"), Line::Output(b"\n"));
        assert_eq!(console.read(b"@@defib-vm n1 exit 137\n"), Line::Exit { rest: b"", status: 137 });
    }

    #[test]
    fn an_unfinished_last_line_is_output_before_the_exit_marker() {
        let mut console = Console::new("n1");
        console.read(b"@@defib-vm n1 begin\n");
        assert_eq!(console.read(b"no newline@@defib-vm n1 exit 0\n"), Line::Exit { rest: b"no newline", status: 0 });
    }

    #[test]
    fn markers_of_other_runs_and_without_begin_are_not_markers() {
        let mut console = Console::new("n1");
        assert_eq!(console.read(b"@@defib-vm n1 exit 0\n"), Line::Noise);
        console.read(b"@@defib-vm n1 begin\n");
        assert_eq!(console.read(b"@@defib-vm n2 exit 0\n"), Line::Output(b"@@defib-vm n2 exit 0\n"));
        assert_eq!(console.read(b"@@defib-vm n1 exit"), Line::Noise);
        assert_eq!(console.read(b"@@defib-vm n1 exit x\n"), Line::Noise);
    }
}
