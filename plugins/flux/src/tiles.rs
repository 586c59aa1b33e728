//! Cutting an image into tiles that overlap, and fading them into each other again (as diffusers' `AutoencoderKL` does).

use crate::convolution::FeatureMap;

/// Channels of a pixel.
pub(crate) const RGB: usize = 3;

/// The rows and columns of a tile.
pub(crate) fn cut(x: &FeatureMap, (top, left): (usize, usize), (height, width): (usize, usize)) -> FeatureMap {
    let channels = x.channels();
    let rows = (top..top + height).flat_map(|y| {
        let start = (y * x.width + left) * channels;
        x.data[start..start + width * channels].iter().copied()
    });
    FeatureMap { height, width, data: rows.collect() }
}

/// Fades from the end of the tile above into the beginning of `tile`.
pub(crate) fn blend_down(above: &FeatureMap, tile: &mut FeatureMap, extent: usize) {
    let extent = extent.min(above.height).min(tile.height);
    let row = tile.width * RGB;
    for y in 0..extent {
        let part = y as f32 / extent as f32;
        let other = &above.data[(above.height - extent + y) * row..][..row];
        for (x, other) in tile.data[y * row..(y + 1) * row].iter_mut().zip(other) {
            *x = other * (1.0 - part) + *x * part;
        }
    }
}

/// Fades from the end of the tile before into the beginning of `tile`.
pub(crate) fn blend_right(before: &FeatureMap, tile: &mut FeatureMap, extent: usize) {
    let extent = extent.min(before.width).min(tile.width);
    for y in 0..tile.height {
        for x in 0..extent {
            let part = x as f32 / extent as f32;
            let other = (y * before.width + before.width - extent + x) * RGB;
            let own = (y * tile.width + x) * RGB;
            for c in 0..RGB {
                tile.data[own + c] = before.data[other + c] * (1.0 - part) + tile.data[own + c] * part;
            }
        }
    }
}

/// Puts the first `kept` rows and columns of a tile where they belong.
pub(crate) fn paste(
    tile: &FeatureMap,
    out: &mut [f32],
    (height, width): (usize, usize),
    (top, left): (usize, usize),
    kept: usize,
) {
    let rows = kept.min(tile.height).min(height.saturating_sub(top));
    let columns = kept.min(tile.width).min(width.saturating_sub(left));
    for y in 0..rows {
        let from = &tile.data[y * tile.width * RGB..][..columns * RGB];
        out[((top + y) * width + left) * RGB..][..columns * RGB].copy_from_slice(from);
    }
}
