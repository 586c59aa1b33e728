//! Tables that fit where they are shown: what is least needed goes first, sentences break between words, and a name stays whole
//! unless other columns tell as much. Pure: it knows no terminal.

use unicode_width::UnicodeWidthStr as _;

/// Columns of a terminal between two of a table.
const GAP: usize = 2;
/// What is left at least of a text that may be cut.
const CUT_MIN: usize = 8;
/// What is left at least of a column of sentences, if its words are no longer.
const WORDS_MIN: usize = 16;
/// How far the rest of a row is moved in under a name that has no room beside it.
const INDENT: usize = 2;
const ELLIPSIS: char = '…';

/// What may be done with a column that has too little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// It is needed as it is.
    Whole,
    /// Its texts may be cut: another column tells enough.
    Cut,
    /// Its texts may go on in the next line, from one word to the next.
    Words,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    heading: &'static str,
    room: Room,
    /// The order in which columns are left out where there is no room, the highest first; 0 stays.
    dispensable: u8,
}

impl Column {
    pub(super) const fn whole(heading: &'static str) -> Self {
        Self { heading, room: Room::Whole, dispensable: 0 }
    }

    pub(super) const fn cut(heading: &'static str) -> Self {
        Self { heading, room: Room::Cut, dispensable: 0 }
    }

    pub(super) const fn words(heading: &'static str) -> Self {
        Self { heading, room: Room::Words, dispensable: 0 }
    }

    pub(super) const fn dispensable(self, order: u8) -> Self {
        Self { dispensable: order, ..self }
    }
}

/// The lines of a table. Without a width each row is one line, and all of it is there.
pub(super) fn lines(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> Vec<String> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let natural = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
        cells.chain([columns[column].heading.width()]).max().unwrap_or_default()
    };
    let natural: Vec<usize> = (0..columns.len()).map(natural).collect();
    let mut widths = natural.clone();
    let mut hangs = false;
    if let Some(width) = width {
        // A path is longer than any column can be: it has a line that ends where it does, and makes no other column narrower.
        let least =
            |column: usize| least(columns[column], natural[column], rows, column).min(cap(columns[column], width));
        let needed =
            |shown: &[usize]| shown.iter().map(|column| least(*column) + GAP).sum::<usize>().saturating_sub(GAP);
        let dispensable = |shown: &[usize]| {
            let all = shown.iter().copied().filter(|column| columns[*column].dispensable > 0);
            all.max_by_key(|column| columns[*column].dispensable)
        };
        // A name has a line of its own where it takes more than half of one, or nothing else makes room for the rest.
        let kept: Vec<usize> = shown.iter().copied().filter(|column| columns[*column].dispensable == 0).collect();
        let is_long = natural.first().is_some_and(|first| *first > width / 2) && needed(&shown) > width;
        hangs = is_long || needed(&kept) > width;
        let indent = |shown: &[usize]| if hangs { needed(shown) - least(0) + INDENT } else { needed(shown) };
        while indent(&shown) > width
            && let Some(gone) = dispensable(&shown)
        {
            shown.retain(|column| *column != gone);
        }
        let mut spare = width.saturating_sub(indent(&shown));
        for column in shown.iter().copied().filter(|column| !(hangs && *column == 0)) {
            widths[column] = least(column).min(natural[column]);
        }
        // Those that lack most are given first, a column of the terminal at a time.
        while spare > 0 {
            let lacking = shown.iter().copied().filter(|column| !(hangs && *column == 0));
            let Some(most) = lacking.max_by_key(|column| natural[*column] - widths[*column]) else { break };
            if natural[most] == widths[most] {
                break;
            }
            widths[most] += 1;
            spare -= 1;
        }
        if hangs {
            widths[0] = INDENT.saturating_sub(GAP);
        }
    }
    let heading = |column: usize| columns[column].heading.to_owned();
    let mut out = Vec::new();
    for row in std::iter::once(None).chain(rows.iter().map(Some)) {
        let mut cells: Vec<String> =
            shown.iter().map(|column| row.map_or_else(|| heading(*column), |row| cell(row, *column))).collect();
        if hangs {
            out.push(std::mem::take(&mut cells[0]));
        }
        let fitted: Vec<Vec<String>> =
            cells.iter().zip(&shown).map(|(cell, column)| fit(cell, columns[*column].room, widths[*column])).collect();
        for line in 0..fitted.iter().map(Vec::len).max().unwrap_or(1) {
            let mut text = String::new();
            for (cell, column) in fitted.iter().zip(&shown) {
                let piece = cell.get(line).map_or("", String::as_str);
                text.push_str(piece);
                text.extend(std::iter::repeat_n(' ', (widths[*column] + GAP).saturating_sub(piece.width())));
            }
            out.push(text.trim_end().to_owned());
        }
    }
    out
}

/// The most that a column takes before any other gets what it needs.
fn cap(column: Column, width: usize) -> usize {
    match column.room {
        Room::Words => width / 2,
        Room::Whole | Room::Cut => usize::MAX,
    }
}

/// The least width of a column.
fn least(column: Column, natural: usize, rows: &[Vec<String>], at: usize) -> usize {
    let heading = column.heading.width();
    match column.room {
        Room::Whole => natural,
        Room::Cut => natural.min(heading.max(CUT_MIN)),
        Room::Words => {
            let words =
                rows.iter().filter_map(|row| row.get(at)).flat_map(|cell| cell.split(' ')).map(|word| word.width());
            natural.min(words.chain([heading, WORDS_MIN]).max().unwrap_or_default())
        }
    }
}

fn fit(cell: &str, room: Room, width: usize) -> Vec<String> {
    match room {
        _ if cell.width() <= width => vec![cell.to_owned()],
        Room::Whole => vec![cell.to_owned()],
        Room::Cut => vec![cut(cell, width)],
        Room::Words => wrap(cell, width),
    }
}

/// What fits of a text. Of a path that is its end, of anything else its beginning.
fn cut(text: &str, width: usize) -> String {
    let keep = width.saturating_sub(1);
    let mut kept = 0;
    let mut takes = |c: &char| {
        kept += c.to_string().width();
        kept <= keep
    };
    if text.contains('/') {
        let end: Vec<char> = text.chars().rev().take_while(&mut takes).collect();
        return std::iter::once(ELLIPSIS).chain(end.into_iter().rev()).collect();
    }
    text.chars().take_while(takes).chain([ELLIPSIS]).collect()
}

/// A text in lines of at most this width, broken between words; a word that is longer has a line of its own.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 5] = [
        Column::whole("MODEL"),
        Column::whole("STATE"),
        Column::cut("PLUGIN").dispensable(1),
        Column::whole("PID").dispensable(2),
        Column::words("WHY"),
    ];

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
        vec![
            row(["smollm2", "hot", "candle-llm", "123", "it was used a moment ago and holds a lease"]),
            row(["a-model-of-a-long-name", "cold", "vendor/plugin", "-", "-"]),
        ]
    }

    #[test]
    fn a_table_fits_and_breaks_no_word() {
        let whole = lines(&COLUMNS, &rows(), None);
        assert_eq!(whole.len(), 3);
        assert!(whole[1].ends_with("123  it was used a moment ago and holds a lease"), "{whole:?}");
        for width in 24..140 {
            let fitted = lines(&COLUMNS, &rows(), Some(width));
            assert!(fitted.iter().all(|line| line.width() <= width), "{width}: {fitted:#?}");
            let words: Vec<&str> = fitted.iter().flat_map(|line| line.split_whitespace()).collect();
            for word in ["smollm2", "a-model-of-a-long-name", "moment", "holds", "lease"] {
                assert!(words.contains(&word), "{width}: {fitted:#?}");
            }
        }
        let narrow = lines(&COLUMNS, &rows(), Some(50));
        assert!(narrow[0].contains("WHY") && !narrow[0].contains("PID"), "{narrow:#?}");
    }

    #[test]
    fn texts_are_cut_at_the_end_that_tells_less() {
        assert_eq!(cut("/some/where/echo.so", 9), "…/echo.so");
        assert_eq!(cut("candle-llm", 6), "candl…");
        assert_eq!(wrap("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrap("endless a", 4), ["endless", "a"]);
    }
}
