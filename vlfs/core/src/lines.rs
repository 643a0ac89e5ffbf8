//! Files of one item a line, as people write them: blank lines and those that begin
//! with `#` say nothing.

use crate::position::Located;

/// A line that says something.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// From 1.
    pub number: usize,
    raw: &'a str,
    /// Without the blanks around it.
    pub content: &'a str,
}

impl Line<'_> {
    /// An error at a part of this line's text.
    pub fn at<E>(&self, part: &str, error: E) -> Located<E> {
        let offset = (part.as_ptr() as usize).saturating_sub(self.raw.as_ptr() as usize);
        Located::new(self.number, offset + 1, error)
    }
}

/// The lines that say something; the number alone of a line that is not UTF-8.
pub fn lines(text: &[u8]) -> impl Iterator<Item = Result<Line<'_>, usize>> {
    (1..).zip(text.split(|b| *b == b'\n')).filter_map(|(number, bytes)| {
        let Ok(raw) = std::str::from_utf8(bytes) else { return Some(Err(number)) };
        let content = raw.trim();
        let says = !content.is_empty() && !content.starts_with('#');
        says.then_some(Ok(Line { number, raw, content }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_and_comments_are_passed_over_and_counted() {
        let found: Vec<_> = lines(b"# a\n\n  one two \n\xff\n\t#b\nthree")
            .map(|line| line.map(|line| (line.number, line.content)))
            .collect();
        assert_eq!(found, [Ok((3, "one two")), Err(4), Ok((6, "three"))]);
        let line = lines(b"  one two").next().expect("one").expect("UTF-8");
        let place = line.at(&line.content[4..], ());
        assert_eq!((place.line, place.column), (1, 7));
    }
}
