//! Tables on the terminal: columns as wide as their widest cell.

/// Rows as aligned text; the first row is the head.
pub(crate) fn render(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// A row from texts.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(ToOwned::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::{render, row};

    #[test]
    fn columns_align() {
        assert_eq!(
            render(&[row(["file", "size"]), row(["candle-llm.so", "4"])]),
            "file           size\ncandle-llm.so  4\n"
        );
    }
}
