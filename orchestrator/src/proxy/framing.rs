//! What hyper's parser forgives or hides in an HTTP/1 request, found in the raw bytes beside it: a `content-length` next to a
//! `transfer-encoding`, a second `content-length`, a folded field, a bare LF. Pure; knows no socket.
//!
//! It is a second reader of the same bytes. Where it loses the thread, the two readers disagree about where a request ends, and
//! that is the very thing to refuse: every later request of that connection is.

use std::collections::VecDeque;

use super::guard::digits;

/// Longest line kept over a read boundary. Heads over 32 KiB are refused by hyper, chunk extensions over 16 KiB too.
const MAX_LINE: usize = 40 << 10;

/// Verdicts on the heads read so far, in their order.
#[derive(Default)]
pub struct Verdicts {
    bad: VecDeque<bool>,
}

impl Verdicts {
    /// True: refuse the request that was just parsed. Also when there is no verdict: then the parser saw a head that we did not.
    pub fn next(&mut self) -> bool {
        self.bad.pop_front().unwrap_or(true)
    }
}

/// Follows the bytes of one connection from its first on.
#[derive(Default)]
pub struct Scanner {
    state: State,
    head: Head,
    line: Vec<u8>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    /// So many bytes of a body with a length.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk with its CRLF.
    Chunk(u64),
    Trailers,
    Lost,
}

/// What was seen of the head under way.
#[derive(Clone, Copy, Default)]
struct Head {
    begun: bool,
    bad: bool,
    length: Option<u64>,
    chunked: bool,
}

impl Scanner {
    pub fn read(&mut self, mut bytes: &[u8], verdicts: &mut Verdicts) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Lost => return,
                State::Body(left) | State::Chunk(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= taken as u64;
                    bytes = &bytes[taken..];
                    match self.state {
                        State::Body(0) => self.state = State::Head,
                        State::Chunk(0) => self.state = State::ChunkSize,
                        _ => {}
                    }
                }
                State::Head | State::ChunkSize | State::Trailers => {
                    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
                        self.keep(bytes);
                        return;
                    };
                    let (line, rest) = bytes.split_at(end + 1);
                    bytes = rest;
                    if self.line.is_empty() {
                        self.take(line, verdicts);
                    } else {
                        self.keep(line);
                        let line = std::mem::take(&mut self.line);
                        self.take(&line, verdicts);
                    }
                }
            }
        }
    }

    fn keep(&mut self, part: &[u8]) {
        if self.line.len() + part.len() > MAX_LINE {
            self.state = State::Lost;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(part);
        }
    }

    /// One line with its LF.
    fn take(&mut self, line: &[u8], verdicts: &mut Verdicts) {
        let (text, bare) = match line {
            [text @ .., b'\r', b'\n'] => (text, false),
            [text @ .., b'\n'] => (text, true),
            text => (text, true),
        };
        match self.state {
            State::Head => {
                self.head.bad |= bare;
                if self.head.line(text) {
                    let head = std::mem::take(&mut self.head);
                    verdicts.bad.push_back(head.bad);
                    self.state = head.follows();
                }
            }
            State::ChunkSize => {
                self.state = match chunk_size(text).filter(|_| !bare) {
                    Some(0) => State::Trailers,
                    Some(n) => n.checked_add(2).map_or(State::Lost, State::Chunk),
                    None => State::Lost,
                }
            }
            State::Trailers if bare => self.state = State::Lost,
            State::Trailers if text.is_empty() => self.state = State::Head,
            State::Trailers | State::Body(_) | State::Chunk(_) | State::Lost => {}
        }
    }
}

impl Head {
    /// One line without its end; true when it ends the head.
    fn line(&mut self, text: &[u8]) -> bool {
        match text.first() {
            // Empty lines before a request are skipped (RFC 9112 section 2.2).
            None => return self.begun,
            Some(_) if !self.begun => self.begun = true,
            Some(b' ' | b'\t') => self.bad = true,
            Some(b'c' | b'C' | b't' | b'T') => self.field(text),
            Some(_) => {}
        }
        false
    }

    fn field(&mut self, text: &[u8]) {
        let Some(colon) = text.iter().position(|b| *b == b':') else {
            self.bad = true;
            return;
        };
        let (name, value) = (&text[..colon], text[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            self.bad |= self.length.is_some() || self.chunked;
            match digits(value) {
                Some(n) => self.length = Some(n),
                None => self.bad = true,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.bad |= self.length.is_some() || self.chunked;
            self.chunked = true;
        }
    }

    /// A refused request ends its connection: what follows it is not read.
    fn follows(self) -> State {
        match (self.bad, self.chunked, self.length) {
            (true, ..) => State::Lost,
            (false, true, _) => State::ChunkSize,
            (false, false, Some(n @ 1..)) => State::Body(n),
            (false, false, _) => State::Head,
        }
    }
}

/// Hexadecimal digits, then nothing, blanks or an extension.
fn chunk_size(text: &[u8]) -> Option<u64> {
    let end = text.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(text.len());
    if !(1..=16).contains(&end) || !matches!(text.get(end), None | Some(b';' | b' ' | b'\t')) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(&text[..end]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The verdicts on a whole connection, read in pieces of `step` bytes.
    fn verdicts(bytes: &[u8], step: usize) -> Vec<bool> {
        let (mut scanner, mut verdicts) = (Scanner::default(), Verdicts::default());
        for piece in bytes.chunks(step) {
            scanner.read(piece, &mut verdicts);
        }
        verdicts.bad.into()
    }

    fn check(text: &str, want: &[bool]) {
        for step in [1, 2, 3, 7, 10_000] {
            assert_eq!(verdicts(text.as_bytes(), step), want, "{text:?} in steps of {step}");
        }
    }

    #[test]
    fn good_requests_are_followed_over_their_bodies() {
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[false]);
        check(
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            &[false, false],
        );
        check(
            "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n\n\n\n\n\nGET / HTTP/1.1\r\n\r\n",
            &[false, false],
        );
        check(
            "POST / HTTP/1.1\r\nContent-Length:0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            &[false, false],
        );
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\n\n\n\n\n\n\r\nA\r\n0123456789\r\n0\r\nx: y\r\n\r\n";
        check(
            &format!("{chunked}{chunked}GET / HTTP/1.1\r\n\r\n"),
            &[false, false, false],
        );
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_bad() {
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length:\r\n",
            "Host: a\n",
            "Host: a\r\n x: folded\r\n",
            "Host: a\r\n\tx: folded\r\n",
            "content-length\r\n",
        ] {
            check(
                &format!("POST / HTTP/1.1\r\n{fields}\r\nGET / HTTP/1.1\r\n\r\n"),
                &[true],
            );
        }
        check("GET / HTTP/1.1\nHost: a\r\n\r\n", &[true]);
        check("GET / HTTP/1.1\r\nHost: a\r\n\n", &[true]);
    }

    #[test]
    fn after_a_body_it_cannot_follow_it_says_nothing_more_and_that_is_bad() {
        for body in [
            "x\r\n",
            "\r\n",
            "5\n12345\r\n",
            "-1\r\n",
            "5x\r\n",
            "ffffffffffffffff\r\n",
            "0\r\nx: y\n\r\n",
        ] {
            check(
                &format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{body}GET / HTTP/1.1\r\n\r\n"),
                &[false],
            );
        }
        assert!(Verdicts::default().next());
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let (mut scanner, mut verdicts) = (Scanner::default(), Verdicts::default());
        for _ in 0..100 {
            scanner.read(&[b'a'; 1000], &mut verdicts);
        }
        assert_eq!(scanner.line.capacity(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_verdicts(bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1_usize..9) {
            prop_assert_eq!(verdicts(&bytes, step), verdicts(&bytes, 1000));
        }

        #[test]
        fn so_does_near_http(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                "GET / HTTP/1.1\r\n", "\r\n", "\n", "content-length: 3\r\n", "transfer-encoding: chunked\r\n", "abc", "3\r\n", "0\r\n", " ",
            ]), 0..30),
            step in 1_usize..9,
        ) {
            let bytes = parts.concat().into_bytes();
            prop_assert_eq!(verdicts(&bytes, step), verdicts(&bytes, 1000));
        }
    }
}
