//! Texts of users as Postgres keeps them. It refuses the character NUL, which every payload may hold.

use outlast_core::InstanceId;

/// Stands before a letter for what is written otherwise. It is no character of any language.
const ESCAPE: char = '\u{10FFFF}';
const NUL: char = '0';
const ITSELF: char = '1';

/// The text in a form that Postgres takes.
pub(super) fn stored(text: &str) -> String {
    if !text.contains(['\0', ESCAPE]) {
        return text.to_owned();
    }
    let mut stored = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            '\0' => stored.extend([ESCAPE, NUL]),
            ESCAPE => stored.extend([ESCAPE, ITSELF]),
            other => stored.push(other),
        }
    }
    stored
}

/// The text as it was given.
pub(super) fn given(stored: String) -> String {
    if !stored.contains(ESCAPE) {
        return stored;
    }
    let mut text = String::with_capacity(stored.len());
    let mut letters = stored.chars().peekable();
    while let Some(letter) = letters.next() {
        let escaped = letters.next_if(|next| letter == ESCAPE && matches!(*next, NUL | ITSELF));
        text.push(if escaped == Some(NUL) { '\0' } else { letter });
    }
    text
}

/// Whether there can be an instance of this id: no name that may be given has NUL in it.
pub(super) fn may_exist(instance: &InstanceId) -> bool {
    !instance.as_str().contains('\0')
}

#[cfg(test)]
mod tests {
    use super::{given, stored};

    #[test]
    fn every_text_comes_back() {
        for text in ["", "plain", "a\0b", "\0\0", "\u{10FFFF}", "\u{10FFFF}0\0", "\u{10FFFF}\u{10FFFF}1"] {
            let kept = stored(text);
            assert!(!kept.contains('\0'));
            assert_eq!(given(kept), text);
        }
        // What was written before there was an escape.
        assert_eq!(given("\u{10FFFF}x".to_owned()), "\u{10FFFF}x");
    }
}
