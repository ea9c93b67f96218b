//! One file that a worker prints to, cut into lines with the name of who printed them.
//!
//! A line `:task_name:NAME` or `:actor_name:NAME` says whose output follows and is not passed on.

use std::mem;

/// Longest line, in bytes; a longer one is passed on in pieces.
const MAX_LINE: usize = 64 * 1024;
/// Most lines in one batch.
const MAX_LINES: usize = 1_000;
/// Beginnings of lines that name who prints.
const MARKERS: [&str; 2] = [":task_name:", ":actor_name:"];

/// Lines that follow one another in a file and have the same author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBatch {
    /// The task or actor; empty if it is not known.
    pub name: String,
    /// Whole lines, without line ends.
    pub lines: Vec<String>,
}

/// What is left of a file between two readings.
#[derive(Debug, Clone, Default)]
pub struct LogTail {
    partial: Vec<u8>,
    name: String,
}

impl LogTail {
    /// The beginning of a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the file and adds the lines that they complete to `out`.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<LogBatch>) {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.end_line(&mut lines, out);
        }
        self.partial.extend_from_slice(bytes);
        while self.partial.len() >= MAX_LINE {
            let rest = self.partial.split_off(MAX_LINE);
            self.end_line(&mut lines, out);
            self.partial = rest;
        }
        self.emit(&mut lines, out);
    }

    /// The file has ended, or what is there is wanted now: the last line may lack its end.
    pub fn finish(&mut self, out: &mut Vec<LogBatch>) {
        let mut lines = Vec::new();
        if !self.partial.is_empty() {
            self.end_line(&mut lines, out);
        }
        self.emit(&mut lines, out);
    }

    fn end_line(&mut self, lines: &mut Vec<String>, out: &mut Vec<LogBatch>) {
        let mut line = mem::take(&mut self.partial);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        if let Some(name) = MARKERS.iter().find_map(|marker| line.strip_prefix(marker)) {
            self.emit(lines, out);
            name.clone_into(&mut self.name);
            return;
        }
        lines.push(line);
        if lines.len() == MAX_LINES {
            self.emit(lines, out);
        }
    }

    fn emit(&self, lines: &mut Vec<String>, out: &mut Vec<LogBatch>) {
        if !lines.is_empty() {
            out.push(LogBatch { name: self.name.clone(), lines: mem::take(lines) });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(name: &str, lines: &[&str]) -> LogBatch {
        LogBatch { name: name.to_owned(), lines: lines.iter().map(|&line| line.to_owned()).collect() }
    }

    #[test]
    fn lines_carry_the_name_of_who_printed_them() {
        let (mut tail, mut out) = (LogTail::new(), Vec::new());
        tail.push(b"before\n:task_name:f\none\ntwo\r\n:actor_name:A\nthr", &mut out);
        assert_eq!(out, [batch("", &["before"]), batch("f", &["one", "two"])]);
        out.clear();
        tail.push(b"ee\n", &mut out);
        assert_eq!(out, [batch("A", &["three"])]);
    }

    #[test]
    fn the_last_line_needs_no_end() {
        let (mut tail, mut out) = (LogTail::new(), Vec::new());
        tail.push(b"no end", &mut out);
        assert_eq!(out, []);
        tail.finish(&mut out);
        tail.finish(&mut out);
        assert_eq!(out, [batch("", &["no end"])]);
    }

    #[test]
    fn what_has_no_lines_is_passed_on_in_pieces() {
        let (mut tail, mut out) = (LogTail::new(), Vec::new());
        tail.push(&vec![b'x'; 2 * MAX_LINE + 1], &mut out);
        assert_eq!(out.iter().map(|batch| batch.lines.len()).sum::<usize>(), 2);
        assert_eq!(tail.partial.len(), 1);
    }

    proptest! {
        #[test]
        fn it_makes_no_difference_in_what_pieces_a_file_is_read(
            text in "[ab:\n\r]{0,200}",
            cuts in prop::collection::vec(0usize..200, 0..8),
        ) {
            let whole = |out: &[LogBatch]| {
                let line = |batch: &LogBatch| {
                    let name = batch.name.clone();
                    batch.lines.iter().map(move |line| (name.clone(), line.clone())).collect::<Vec<_>>()
                };
                out.iter().flat_map(line).collect::<Vec<_>>()
            };
            let (mut at_once, mut expected) = (LogTail::new(), Vec::new());
            at_once.push(text.as_bytes(), &mut expected);
            at_once.finish(&mut expected);
            let (mut in_pieces, mut actual) = (LogTail::new(), Vec::new());
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            cuts.insert(0, 0);
            cuts.push(text.len());
            for pair in cuts.windows(2) {
                in_pieces.push(&text.as_bytes()[pair[0]..pair[1]], &mut actual);
            }
            in_pieces.finish(&mut actual);
            prop_assert_eq!(whole(&actual), whole(&expected));
        }
    }
}
