//! Patterns that leave paths out, in the manner of `.gitignore`.
//!
//! `*` and `?` match within one name, `**` matches any number of names, `[a-z]` and `[!a-z]` one byte, and a
//! backslash takes the next byte as it is. A pattern without a slash (but at its end) matches a name at any
//! depth; with one it is tied to the directory that is imported. A slash at the end matches directories only.
//! `!` in front takes back what earlier patterns left out; the last pattern that matches decides. What is
//! below an excluded directory is not looked at.
//!
//! Matching takes time in proportion to pattern times path: no pattern makes it explode.

/// An ordered list of patterns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Excludes {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    negated: bool,
    dirs_only: bool,
    anchored: bool,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    /// `**`: any number of names, none included.
    AnyNames,
    Name(Vec<Token>),
}

#[derive(Clone, Debug)]
enum Token {
    Byte(u8),
    AnyByte,
    AnyBytes,
    Set { negated: bool, ranges: Vec<(u8, u8)> },
}

/// A pattern that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pattern {pattern:?} {what}")]
pub struct PatternError {
    pattern: String,
    what: &'static str,
}

impl Excludes {
    /// Reads patterns, in order.
    pub(crate) fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        let patterns = patterns.iter().map(|text| Pattern::parse(text.as_ref())).collect::<Result<_, _>>()?;
        Ok(Excludes { patterns })
    }

    /// Returns whether a path below the imported directory is left out. Its parents are not.
    pub(crate) fn excludes(&self, path: &[&[u8]], is_dir: bool) -> bool {
        let last = self.patterns.iter().rev().find(|pattern| pattern.matches(path, is_dir));
        last.is_some_and(|pattern| !pattern.negated)
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern, PatternError> {
        let error = |what| PatternError { pattern: text.to_string(), what };
        let (negated, rest) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (dirs_only, rest) = match rest.strip_suffix('/') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let anchored = rest.contains('/');
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        let mut parts = Vec::new();
        for part in rest.split('/') {
            match part {
                "" => return Err(error("has an empty name in it")),
                "." | ".." => return Err(error("has `.` or `..` in it, which no path has")),
                "**" => parts.push(Part::AnyNames),
                name => parts.push(Part::Name(tokens(name).map_err(error)?)),
            }
        }
        Ok(Pattern { negated, dirs_only, anchored, parts })
    }

    fn matches(&self, path: &[&[u8]], is_dir: bool) -> bool {
        if self.dirs_only && !is_dir {
            return false;
        }
        let path = if self.anchored { path } else { &path[path.len().saturating_sub(1)..] };
        // The usual greedy matcher: on a mismatch only the last `**` is moved on.
        let (mut p, mut n) = (0, 0);
        let mut back: Option<(usize, usize)> = None;
        while n < path.len() {
            match self.parts.get(p) {
                Some(Part::AnyNames) => {
                    back = Some((p, n));
                    p += 1;
                    // A trailing `**` stands for what is inside, so for at least one name.
                    if p == self.parts.len() {
                        return true;
                    }
                    continue;
                }
                Some(Part::Name(tokens)) if name_matches(tokens, path[n]) => {
                    p += 1;
                    n += 1;
                    continue;
                }
                _ => {}
            }
            match &mut back {
                Some((at, from)) => {
                    *from += 1;
                    n = *from;
                    p = *at + 1;
                }
                None => return false,
            }
        }
        p == self.parts.len()
    }
}

fn tokens(name: &str) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut bytes = name.bytes().peekable();
    while let Some(byte) = bytes.next() {
        tokens.push(match byte {
            b'*' => {
                while bytes.next_if_eq(&b'*').is_some() {}
                Token::AnyBytes
            }
            b'?' => Token::AnyByte,
            b'\\' => Token::Byte(bytes.next().ok_or("ends with a backslash")?),
            b'[' => {
                let negated = bytes.next_if(|b| matches!(b, b'!' | b'^')).is_some();
                let mut ranges = Vec::new();
                loop {
                    let low = match bytes.next().ok_or("has a `[` without its `]`")? {
                        b']' if !ranges.is_empty() => break,
                        b'\\' => bytes.next().ok_or("ends with a backslash")?,
                        byte => byte,
                    };
                    let mut high = low;
                    if bytes.peek() == Some(&b'-') {
                        bytes.next();
                        match bytes.next().ok_or("has a `[` without its `]`")? {
                            b']' => {
                                ranges.extend([(low, low), (b'-', b'-')]);
                                break;
                            }
                            b'\\' => high = bytes.next().ok_or("ends with a backslash")?,
                            byte => high = byte,
                        }
                    }
                    ranges.push((low, high));
                }
                Token::Set { negated, ranges }
            }
            byte => Token::Byte(byte),
        });
    }
    Ok(tokens)
}

fn name_matches(tokens: &[Token], name: &[u8]) -> bool {
    let (mut t, mut n) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while n < name.len() {
        let hit = match tokens.get(t) {
            Some(Token::AnyBytes) => {
                back = Some((t, n));
                t += 1;
                continue;
            }
            Some(Token::AnyByte) => true,
            Some(Token::Byte(byte)) => *byte == name[n],
            Some(Token::Set { negated, ranges }) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&name[n])) != *negated
            }
            None => false,
        };
        if hit {
            t += 1;
            n += 1;
        } else if let Some((at, from)) = &mut back {
            *from += 1;
            n = *from;
            t = *at + 1;
        } else {
            return false;
        }
    }
    tokens[t..].iter().all(|token| matches!(token, Token::AnyBytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn excluded(patterns: &[&str], path: &str) -> bool {
        let (path, is_dir) = match path.strip_suffix('/') {
            Some(path) => (path, true),
            None => (path, false),
        };
        let parts: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        Excludes::new(patterns).unwrap().excludes(&parts, is_dir)
    }

    #[test]
    fn patterns_match_what_gitignore_would() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("*.tmp", &["a.tmp", "x/y/a.tmp", ".tmp"], &["a.tmp.x", "tmp"]),
            ("cache", &["cache", "x/cache", "cache/"], &["cache2", "acache"]),
            ("cache/", &["cache/", "x/cache/"], &["cache", "x/cache"]),
            ("/cache", &["cache", "cache/"], &["x/cache"]),
            ("a/b", &["a/b"], &["x/a/b", "a/b/c", "a"]),
            ("a/*/c", &["a/b/c"], &["a/c", "a/b/b/c"]),
            ("**/c", &["c", "a/c", "a/b/c"], &["a/cc"]),
            ("a/**", &["a/b", "a/b/c"], &["a", "b/a/b"]),
            ("a/**/z", &["a/z", "a/b/z", "a/b/c/z"], &["a", "a/z/y", "z"]),
            ("**/x/**/y", &["x/y", "a/x/b/y", "x/x/y/y"], &["x", "y", "y/x"]),
            ("fo?", &["foo", "fob"], &["fo", "fooo"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "-x"]),
            ("[!a-c]x", &["dx"], &["ax"]),
            ("[]x]", &["]", "x"], &["[", "]x"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("\\*", &["*"], &["a"]),
            ("a*b*c", &["abc", "axxbyyc", "abbc", "abcbc"], &["ab", "abcx"]),
        ];
        for (pattern, yes, no) in cases {
            for path in *yes {
                assert!(excluded(&[pattern], path), "{pattern} should match {path}");
            }
            for path in *no {
                assert!(!excluded(&[pattern], path), "{pattern} should not match {path}");
            }
        }
    }

    #[test]
    fn the_last_match_decides() {
        let patterns = ["*.log", "!keep.log", "x/keep.log"];
        assert!(excluded(&patterns, "a.log"));
        assert!(!excluded(&patterns, "keep.log"));
        assert!(!excluded(&patterns, "y/keep.log"));
        assert!(excluded(&patterns, "x/keep.log"));
        assert!(!excluded(&[], "anything"));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "/", "!", "a//b", "a/../b", "./a", "[a", "[", "[a-", "a\\", "[\\", "//"] {
            assert!(Excludes::new(&[bad]).is_err(), "{bad:?}");
        }
        assert_eq!(
            Excludes::new(&["[a"]).unwrap_err().to_string(),
            "the pattern \"[a\" has a `[` without its `]`"
        );
    }

    #[test]
    fn many_stars_stay_cheap() {
        let pattern = "a*".repeat(60) + "b";
        let name = "a".repeat(255);
        assert!(!excluded(&[&pattern], &name));
        let pattern = "**/a/".repeat(60) + "b";
        let path = vec!["a"; 1000].join("/");
        assert!(!excluded(&[&pattern], &path));
    }
}
