//! The message of an exception without what varies from one failure to the next.
//!
//! One pass, and linear but for short looks ahead: the text is whatever an application raises.

use crate::text::boundary;

/// Bytes of the result.
const MESSAGE_BYTES: usize = 255;
/// How far a look ahead goes for the `@` of an address.
const EMAIL_BYTES: usize = 64;
/// A word of hexadecimal digits at least so long is a number, if it has a decimal digit.
const HEX_DIGITS: usize = 8;
/// A word at least so long, with so many digits, is an id.
const ID_BYTES: usize = 16;
const ID_DIGITS: usize = 4;

/// Returns the message of `exception`, as Celery writes exceptions: `Class('message', …)` or `Class: message`.
pub(super) fn normalised(exception: &str, class: &str) -> String {
    let mut out = Message::default();
    match arguments(exception, class) {
        Some(arguments) => out.arguments(arguments),
        None => out.words(words(exception, class)),
    }
    let end = boundary(&out.text, MESSAGE_BYTES);
    out.text.truncate(end);
    out.text.truncate(out.text.trim_end().len());
    out.text
}

/// `path.Class(1, 'x')` → `1, 'x'`, also if the end was cut off.
fn arguments<'a>(exception: &'a str, class: &str) -> Option<&'a str> {
    let (path, rest) = exception.split_once('(')?;
    let is_class = !class.is_empty() && path.rsplit('.').next() == Some(class);
    is_class.then(|| rest.trim_end().strip_suffix(')').unwrap_or(rest).trim_end_matches(','))
}

/// `Class: message` → `message`.
fn words<'a>(exception: &'a str, class: &str) -> &'a str {
    match exception.strip_prefix(class) {
        Some("") => "",
        Some(rest) if !class.is_empty() => rest.strip_prefix(": ").unwrap_or(exception),
        _ => exception,
    }
}

#[derive(Default)]
struct Message {
    text: String,
}

impl Message {
    fn is_full(&self) -> bool {
        self.text.len() > MESSAGE_BYTES
    }

    /// Arguments of a call: those that are texts are words of the message, others are values.
    fn arguments(&mut self, mut rest: &str) {
        while !rest.is_empty() && !self.is_full() {
            let len = if let Some(quote @ ('\'' | '"')) = rest.chars().next() {
                let (text, len) = literal(rest, quote);
                self.words(&text);
                len
            } else {
                let len = argument_len(rest);
                self.words(rest.get(..len).unwrap_or_default());
                len
            };
            rest = rest.get(len..).unwrap_or_default();
            // What stands between two arguments.
            let next = rest.trim_start_matches([',', ' ']);
            if next.len() < rest.len() && !next.is_empty() {
                self.text.push_str(", ");
            } else if next.len() == rest.len() && !rest.is_empty() {
                // No list of arguments after all: `Class('a' …)`.
                return self.words(rest);
            }
            rest = next;
        }
    }

    fn words(&mut self, mut rest: &str) {
        let mut before = None;
        while !rest.is_empty() && !self.is_full() {
            let len = self.token(rest, before).max(1);
            let len = boundary_after(rest, len);
            before = rest.get(..len).and_then(|taken| taken.chars().next_back());
            rest = rest.get(len..).unwrap_or_default();
        }
    }

    /// Adds what the next token says, and returns how long it is.
    fn token(&mut self, rest: &str, before: Option<char>) -> usize {
        let Some(first) = rest.chars().next() else { return 0 };
        let after_word = before.is_some_and(is_word);
        match first {
            _ if first.is_whitespace() => self.space(rest),
            '\'' | '"' | '`' if !after_word => self.quoted(rest, first),
            '/' if !after_word => self.path(rest),
            ':' if rest.starts_with("://") => self.authority(rest),
            // A sign.
            '-' if !after_word && rest.get(1..).is_some_and(|rest| rest.starts_with(is_digit)) => 1,
            ':' if !after_word => match address_len(rest) {
                Some(len) => self.put("<address>", len),
                None => self.plain(first),
            },
            _ if is_word(first) => self.word(rest, after_word),
            _ => self.plain(first),
        }
    }

    fn plain(&mut self, character: char) -> usize {
        self.text.push(character);
        character.len_utf8()
    }

    fn put(&mut self, text: &str, len: usize) -> usize {
        self.text.push_str(text);
        len
    }

    fn space(&mut self, rest: &str) -> usize {
        if !self.text.is_empty() && !self.text.ends_with(' ') {
            self.text.push(' ');
        }
        rest.len() - rest.trim_start().len()
    }

    fn quoted(&mut self, rest: &str, quote: char) -> usize {
        match closing(rest, quote) {
            Some(len) => self.put("<str>", len),
            None => self.plain(quote),
        }
    }

    /// Segments with a digit are what varies in a path; so is all of a query.
    fn path(&mut self, rest: &str) -> usize {
        let ends = |c: char| c.is_whitespace() || "'\"`,;:()[]{}<>|".contains(c);
        let path = rest.get(..rest.find(ends).unwrap_or(rest.len())).unwrap_or_default();
        let (segments, query) = path
            .split_once('?')
            .map_or((path, None), |(path, query)| (path, Some(query)));
        for (number, segment) in segments.split('/').enumerate() {
            if number > 0 {
                self.text.push('/');
            }
            let varies = segment.contains(is_digit);
            self.text.push_str(if varies { "<*>" } else { segment });
        }
        if query.is_some_and(|query| !query.is_empty()) {
            self.text.push_str("?<*>");
        }
        path.len()
    }

    /// `://user:password@host:80` of a URL.
    fn authority(&mut self, rest: &str) -> usize {
        self.text.push_str("://");
        let ends = |c: char| c.is_whitespace() || "/?'\"`,;)]}>".contains(c);
        let body = rest.get("://".len()..).unwrap_or_default();
        let authority = body.get(..body.find(ends).unwrap_or(body.len())).unwrap_or_default();
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                self.text.push_str("<str>@");
                self.words(host);
            }
            None => self.words(authority),
        }
        let len = "://".len() + authority.len();
        match rest.get(len..) {
            Some(path) if path.starts_with(['/', '?']) => len + self.path(path),
            _ => len,
        }
    }

    fn word(&mut self, rest: &str, after_word: bool) -> usize {
        if !after_word {
            if is_uuid(rest) {
                return self.put("<uuid>", 36);
            }
            if let Some(len) = address_len(rest) {
                return self.put("<address>", len);
            }
            if let Some(len) = email_len(rest) {
                return self.put("<email>", len);
            }
        }
        let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(len);
        if word.bytes().all(|byte| byte.is_ascii_digit()) {
            return self.put("<n>", len + fraction_len(behind));
        }
        // `b'…'`, `u'…'`: a text with a mark before it.
        if let (1, Some(quote @ ('\'' | '"'))) = (len, behind.chars().next())
            && "bBuUrRfF".contains(word)
            && let Some(quoted) = closing(behind, quote)
        {
            return self.put("<str>", len + quoted);
        }
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let hex = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
        if hex.is_some_and(is_hex) || len >= HEX_DIGITS && digits > 0 && is_hex(word) {
            return self.put("<hex>", len);
        }
        if len >= ID_BYTES && digits >= ID_DIGITS {
            return self.put("<id>", len);
        }
        self.numbered(word);
        len
    }

    /// A word with numbers in it: `worker12`, `5ms`.
    fn numbered(&mut self, word: &str) {
        let mut was_digit = false;
        for character in word.chars() {
            match (is_digit(character), was_digit) {
                (true, false) => self.text.push_str("<n>"),
                (true, true) => {}
                (false, _) => self.text.push(character),
            }
            was_digit = is_digit(character);
        }
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn is_digit(character: char) -> bool {
    character.is_ascii_digit()
}

/// Returns the end of the character in which `at` lies.
fn boundary_after(text: &str, at: usize) -> usize {
    (at..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len())
}

/// Reads a Python text with its quotes: what it says, and how long it is. One whose end was cut off goes to the end.
fn literal(text: &str, quote: char) -> (String, usize) {
    let mut said = String::new();
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            'n' | 't' | 'r' if escaped => said.push(' '),
            _ if escaped => said.push(character),
            '\\' => {}
            _ if character == quote => return (said, at + 1),
            _ => said.push(character),
        }
        escaped = character == '\\' && !escaped;
    }
    (said, text.len())
}

/// Returns the length of a value up to the comma behind it that is in no bracket and in no text.
fn argument_len(text: &str) -> usize {
    let (mut depth, mut open) = (0_usize, None);
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match (open, character) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(quote), _) if character == quote => open = None,
            (None, '\'' | '"') => open = Some(character),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => return at,
            (Some(_) | None, _) => {}
        }
    }
    text.len()
}

/// Returns the length of a text in quotes at the beginning, if it ends: an apostrophe within a word ends none.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        let end = at + character.len_utf8();
        if character == quote && !escaped {
            let behind = text.get(end..).and_then(|rest| rest.chars().next());
            if quote == '"' || behind.is_none_or(|behind| !is_word(behind)) {
                return Some(end);
            }
        }
        escaped = character == '\\' && !escaped;
    }
    None
}

/// Says whether the text begins with a UUID in its usual form.
fn is_uuid(text: &str) -> bool {
    let Some(head) = text.as_bytes().get(..36) else {
        return false;
    };
    let fits = head.iter().enumerate().all(|(index, byte)| match index {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    fits && !text.get(36..).is_some_and(|rest| rest.starts_with(is_word))
}

/// Returns the length of an IPv6 or MAC address at the beginning. Times have colons too, but never two together or five.
fn address_len(text: &str) -> Option<usize> {
    let belongs = |byte: &u8| byte.is_ascii_hexdigit() || *byte == b':';
    let len = text.bytes().take_while(|byte| belongs(byte)).count().min(64);
    let address = text.get(..len)?.trim_end_matches(':');
    let colons = address.bytes().filter(|byte| *byte == b':').count();
    let is_one = (colons >= 5 || colons >= 2 && address.contains("::"))
        && address.contains(is_digit)
        && !text.get(len..).is_some_and(|rest| rest.starts_with(is_word));
    is_one.then_some(address.len())
}

/// Returns the length of an e-mail address at the beginning.
fn email_len(text: &str) -> Option<usize> {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || b"._%+-".contains(byte);
    let name = text.bytes().take(EMAIL_BYTES).take_while(part).count();
    let host = text.get(name..)?.strip_prefix('@')?;
    let len = host.bytes().take(EMAIL_BYTES * 4).take_while(part).count();
    let host = host.get(..len)?.trim_end_matches(['.', '-']);
    (!host.is_empty()).then_some(name + 1 + host.len())
}

/// Returns the length of what goes on behind digits: `.5`, `,000`, `.0.0.1`.
fn fraction_len(text: &str) -> usize {
    let mut len = 0;
    while let Some(rest) = text.get(len..).and_then(|rest| rest.strip_prefix(['.', ','])) {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let ends = !rest.get(digits..).is_some_and(|rest| rest.starts_with(is_word));
        if digits == 0 || !ends {
            break;
        }
        len += 1 + digits;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_varies_is_replaced_and_what_does_not_stays() {
        for (exception, class, wanted) in [
            ("ValueError('boom')", "ValueError", "boom"),
            ("ValueError()", "ValueError", ""),
            ("ValueError('a',)", "ValueError", "a"),
            ("ValueError", "ValueError", ""),
            ("ValueError: boom 5", "ValueError", "boom <n>"),
            ("app.errors.Broken('x')", "Broken", "x"),
            // The class is not known, or is another.
            ("boom 5", "", "boom <n>"),
            ("f(5)", "ValueError", "f(<n>)"),
            (
                "OSError(2, 'No such file or directory')",
                "OSError",
                "<n>, No such file or directory",
            ),
            (
                "E('a', 'b', {'k': 'v', 'n': 5}, None)",
                "E",
                "a, b, {<str>: <str>, <str>: <n>}, None",
            ),
            (r"E('it\'s \'x\' \n now')", "E", "it's <str> now"),
            ("E(\"name 'foo' is not defined\")", "E", "name <str> is not defined"),
            ("E('cut in the mid", "E", "cut in the mid"),
            (
                "E(\"can't open the worker's file\")",
                "E",
                "can't open the worker's file",
            ),
            ("E: got b'\\x00' and u\"x\"", "E", "got <str> and <str>"),
            ("E: `a b` \"c\"", "E", "<str> <str>"),
            (
                "E: took 1.5 s, 5ms, -3, 1,000,000 or 10%",
                "E",
                "took <n> s, <n>ms, <n>, <n> or <n>%",
            ),
            ("E: worker12 v2 is up", "E", "worker<n> v<n> is up"),
            ("E: <Order object at 0x7f3a2b10>", "E", "<Order object at <hex>>"),
            ("E: commit 9fceb02d0ae5 of deadbeef", "E", "commit <hex> of deadbeef"),
            (
                "E: task 6b2c9f5e-0000-4000-8000-00000000000a failed",
                "E",
                "task <uuid> failed",
            ),
            ("E: token aB3dE5fG7hI9jK1l gone", "E", "token <id> gone"),
            ("E: no route to 10.0.12.7:5432", "E", "no route to <n>:<n>"),
            (
                "E: [fe80::1ff:fe23] and ::1 and 00:1a:2b:3c:4d:5e",
                "E",
                "[<address>] and <address> and <address>",
            ),
            ("E: at 10:20:30 in std::vec", "E", "at <n>:<n>:<n> in std::vec"),
            ("E: no mail to jane.doe@example.org.", "E", "no mail to <email>."),
            (
                "E: /data/run-17/in.csv, /etc/app.conf:12",
                "E",
                "/data/<*>/in.csv, /etc/app.conf:<n>",
            ),
            ("E: and/or 1/2", "E", "and/or <n>/<n>"),
            (
                "E: http://u:p@api.local:8080/users/17?key=abc failed",
                "E",
                "http://<str>@api.local:<n>/users/<*>?<*> failed",
            ),
            ("E:  many \n\n lines\t here ", "E", "many lines here"),
            ("E: 5 Ärger mit Größe 7²", "E", "<n> Ärger mit Größe <n>²"),
        ] {
            assert_eq!(normalised(exception, class), wanted, "{exception}");
        }
    }

    #[test]
    fn a_message_is_short_and_made_quickly_whatever_is_raised() {
        for piece in [
            "a.", "1", "'", "/1", "é5", ":", "x@", "\\'", "((", "1.", "::1", "- -1", "b'", "\u{3000}",
        ] {
            for head in ["", "E(", "E('", "E: "] {
                let text = format!("{head}{}", piece.repeat(2_048 / piece.len()));
                let message = normalised(&text, "E");
                assert!(message.len() <= 255, "{piece} {}", message.len());
            }
        }
    }

    #[test]
    fn what_is_beyond_the_bound_does_not_matter() {
        let long = |number: u32, tail: &str| format!("E('{} {number} {tail}')", "word ".repeat(60));
        assert_eq!(normalised(&long(5, "x"), "E"), normalised(&long(500, "y"), "E"));
    }
}
