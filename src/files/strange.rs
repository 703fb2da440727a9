//! Text in a form that no reader here understands, known by its first bytes. Read as UTF-8 lines it would be one
//! long row, or rows of damage; it is named instead, with what to do.

/// What to say of text in UTF-16 or UTF-32: by its byte order mark, or by the zero bytes among its first letters.
pub fn wide(head: &[u8]) -> Option<&'static str> {
    const UTF16: &str = "is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8";
    const UTF32: &str = "is UTF-32 text; convert it: iconv -f UTF-32 -t UTF-8";
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some(UTF32),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(UTF16),
        [1..=0xff, 0, 0, 0, ..] | [0, 0, 0, 1..=0xff, ..] => Some(UTF32),
        [1..=0xff, 0, 1..=0xff, 0, ..] | [0, 1..=0xff, 0, 1..=0xff, ..] => Some(UTF16),
        _ => None,
    }
}

/// What to say of lines that end in a carriage return alone, as on old Macs: there is no line feed, and what
/// carriage returns part has the same shape twice. (Text of one long line may hold some too.)
pub fn lone_returns(head: &[u8]) -> Option<&'static str> {
    if memchr::memchr(b'\n', head).is_some() {
        return None;
    }
    let shape = |line: &[u8]| {
        let tabs = line.iter().filter(|&&byte| byte == b'\t').count();
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count();
        (tabs, line.starts_with(b"{"), if tabs > 0 { 0 } else { words })
    };
    let mut lines = head.split(|&byte| byte == b'\r').filter(|line| !line.trim_ascii().is_empty());
    let (first, second) = (lines.next()?, lines.next()?);
    (shape(first) == shape(second))
        .then_some("its lines end in a carriage return alone; convert it: tr '\\r' '\\n'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_text_is_known_with_and_without_a_mark() {
        for bytes in [&b"\xff\xfea\0"[..], b"\xfe\xff\0a", b"a\0\t\0", b"\0a\0\t"] {
            assert!(wide(bytes).is_some_and(|what| what.contains("UTF-16")), "{bytes:?}");
        }
        for bytes in [&b"\xff\xfe\0\0a\0\0\0"[..], b"\0\0\xfe\xff\0\0\0a", b"a\0\0\0", b"\0\0\0a"] {
            assert!(wide(bytes).is_some_and(|what| what.contains("UTF-32")), "{bytes:?}");
        }
        for bytes in [&b""[..], b"a\0", b"ab\0c", b"\xef\xbb\xbfa", b"\0\0\0\0", b"plain"] {
            assert_eq!(wide(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn lines_of_old_macs_are_known() {
        assert!(lone_returns(b"a\tb\rc\td\r").is_some());
        for bytes in
            [&b"a\tb\r\nc\td\r\n"[..], b"a\tb\r", b"a\tb", b"", b"\r\r", b"a\rb\n", b"D1\tone\rline of text"]
        {
            assert_eq!(lone_returns(bytes), None, "{bytes:?}");
        }
    }
}
