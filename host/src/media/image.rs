//! Pixels as files: PNG that says what made it, JPEG and WebP; and the rows that a plugin pushes, put together.

use aihost_plugin_api::task::{ImageBlock, ImageHeader};

use crate::domain::{Failure, FailureKind};

/// An image in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Pixels in a row.
    pub(crate) width: u32,
    /// Pixels in a column.
    pub(crate) height: u32,
    /// Rows top to bottom, 3 bytes (red, green, blue) for each pixel, sRGB.
    pub(crate) pixels: Vec<u8>,
}

/// A kind of image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImageFormat {
    /// Portable Network Graphics.
    Png,
    /// JPEG, baseline.
    Jpeg,
    /// WebP, lossless.
    Webp,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageEncoding {
    /// Of what kind.
    pub(crate) format: ImageFormat,
    /// From 0 to 100, of a JPEG; the other kinds lose nothing.
    pub(crate) quality: u8,
}

/// Metadata of a PNG: the keywords and texts of its `iTXt` chunks.
pub(crate) type TextChunks = Vec<(&'static str, String)>;

impl ImageFormat {
    /// By its name in OpenAI's API.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        [Self::Png, Self::Jpeg, Self::Webp].into_iter().find(|format| format.name() == name)
    }

    /// Its name in OpenAI's API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// By the ending of a file's name.
    pub(crate) fn by_ending(ending: &str) -> Option<Self> {
        Self::by_name(if ending == "jpg" { "jpeg" } else { ending })
    }
}

impl Image {
    /// A whole file. Takes a while for a large image.
    ///
    /// # Errors
    /// If the pixels are not as many as the size says, or the file cannot hold them.
    pub(crate) fn encode(&self, encoding: ImageEncoding, metadata: &TextChunks) -> Result<Vec<u8>, String> {
        let wanted = u64::from(self.width) * u64::from(self.height) * ImageHeader::PIXEL_BYTES as u64;
        if self.pixels.len() as u64 != wanted {
            return Err(format!("an image of {wanted} bytes has {}", self.pixels.len()));
        }
        let mut file = Vec::new();
        let written = match encoding.format {
            ImageFormat::Png => self.png(&mut file, metadata).map_err(|error| error.to_string()),
            ImageFormat::Jpeg => self.jpeg(&mut file, encoding.quality),
            ImageFormat::Webp => image_webp::WebPEncoder::new(&mut file)
                .encode(&self.pixels, self.width, self.height, image_webp::ColorType::Rgb8)
                .map_err(|error| error.to_string()),
        };
        let name = encoding.format.name();
        written.map(|()| file).map_err(|error| format!("no {name} file can be made of the image: {error}"))
    }

    fn png(&self, file: &mut Vec<u8>, metadata: &TextChunks) -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(file, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
        for (keyword, text) in metadata {
            // International text, for it is UTF-8; it must have no zero byte (PNG 11.3.3.4).
            encoder.add_itxt_chunk((*keyword).to_owned(), text.replace('\0', ""))?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()
    }

    /// With the colours at half the resolution below quality 90, which is the encoder's default and the usual choice.
    fn jpeg(&self, file: &mut Vec<u8>, quality: u8) -> Result<(), String> {
        let side = |pixels: u32| u16::try_from(pixels).map_err(|_| format!("{pixels} pixels are more than 65535"));
        let (width, height) = (side(self.width)?, side(self.height)?);
        jpeg_encoder::Encoder::new(file, quality.clamp(1, 100))
            .encode(&self.pixels, width, height, jpeg_encoder::ColorType::Rgb)
            .map_err(|error| error.to_string())
    }
}

/// Puts the images of one answer together.
#[derive(Debug)]
pub(crate) struct ImageAssembler {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

/// An image whose rows are all there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AssembledImage {
    /// Its pixels and size.
    pub(crate) image: Image,
    /// Its place in the answer, if it is not the finished one.
    pub(crate) partial: Option<u32>,
}

impl ImageAssembler {
    /// For images of this size.
    pub(crate) fn new(width: u32, height: u32) -> Self {
        Self { width, height, pixels: Vec::new() }
    }

    /// Takes what a plugin pushed; gives the image that it completes.
    ///
    /// # Errors
    /// If it is no block of pixels, of another size, or does not follow the one before.
    pub(crate) fn take(&mut self, payload: &[u8]) -> Result<Option<AssembledImage>, Failure> {
        let wrong = |message: String| Failure::new(FailureKind::Internal, message);
        let ImageBlock { header, pixels, .. } =
            ImageBlock::decode(payload).map_err(|error| wrong(error.to_string()))?;
        let (width, height) = (self.width, self.height);
        let row_bytes = width as usize * ImageHeader::PIXEL_BYTES;
        let rows = self.pixels.len() / row_bytes.max(1);
        if (header.width, header.height) != (width, height) || header.row as usize != rows {
            let ImageHeader { width: its_width, height: its_height, row, .. } = header;
            return Err(wrong(format!(
                "the plugin pushed row {row} of {its_width} x {its_height}, after row {rows} of {width} x {height}"
            )));
        }
        self.pixels.extend(pixels);
        if self.pixels.len() < row_bytes * height as usize {
            return Ok(None);
        }
        let image = Image { width, height, pixels: std::mem::take(&mut self.pixels) };
        Ok(Some(AssembledImage { image, partial: header.partial.then_some(header.index) }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use zune_png::PngDecoder;
    use zune_png::zune_core::bytestream::ZCursor;

    use super::*;

    fn image(width: u32, height: u32, noise: u32) -> Image {
        let pixels = (0..width * height * 3).map(|i| (i.wrapping_mul(noise) >> 3) as u8).collect();
        Image { width, height, pixels }
    }

    fn encoded(image: &Image, format: ImageFormat, quality: u8) -> Vec<u8> {
        image.encode(ImageEncoding { format, quality }, &Vec::new()).unwrap()
    }

    /// What is in a WebP file.
    pub(crate) fn read_webp(file: &[u8]) -> Image {
        let mut decoder = image_webp::WebPDecoder::new(std::io::Cursor::new(file)).unwrap();
        let (width, height) = decoder.dimensions();
        let mut pixels = vec![0; decoder.output_buffer_size().unwrap()];
        decoder.read_image(&mut pixels).unwrap();
        Image { width, height, pixels }
    }

    /// What is in a JPEG file.
    pub(crate) fn read_jpeg(file: &[u8]) -> Image {
        let mut decoder = zune_jpeg::JpegDecoder::new(ZCursor::new(file));
        let pixels = decoder.decode().unwrap();
        let (width, height) = decoder.dimensions().unwrap();
        Image { width: width as u32, height: height as u32, pixels }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_loses_nothing_reads_back(width in 1u32..70, height in 1u32..70, noise in 1u32..9999) {
            let image = image(width, height, noise);
            let mut png = PngDecoder::new(ZCursor::new(encoded(&image, ImageFormat::Png, 100)));
            prop_assert_eq!(&png.decode_raw().unwrap(), &image.pixels);
            prop_assert_eq!(png.dimensions(), Some((width as usize, height as usize)));
            prop_assert_eq!(read_webp(&encoded(&image, ImageFormat::Webp, 1)), image);
        }
    }

    #[test]
    fn a_jpeg_is_near_and_smaller_where_more_may_be_lost() {
        let pixels = (0..96u32 * 64 * 3).map(|i| (i / 3 % 96 * 2 + i / 288) as u8).collect();
        let smooth = Image { width: 96, height: 64, pixels };
        let found = read_jpeg(&encoded(&smooth, ImageFormat::Jpeg, 100));
        assert_eq!((found.width, found.height), (96, 64));
        let off = found.pixels.iter().zip(&smooth.pixels).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(off < Some(12), "{off:?}");
        let rough = image(96, 64, 9973);
        let bytes = [0, 50, 100].map(|quality| encoded(&rough, ImageFormat::Jpeg, quality).len());
        assert!(bytes[0] < bytes[1] / 2 && bytes[1] < bytes[2] / 2, "{bytes:?}");
    }

    #[test]
    fn a_png_says_what_made_it() {
        let metadata: TextChunks =
            vec![("prompt", "a fox, \u{72d0}\n\u{1f98a}\0!".to_owned()), ("seed", "7".to_owned())];
        let encoding = ImageEncoding { format: ImageFormat::Png, quality: 100 };
        let file = image(16, 16, 3).encode(encoding, &metadata).unwrap();
        let mut png = PngDecoder::new(ZCursor::new(file));
        png.decode_raw().unwrap();
        let found = &png.info().unwrap().itxt_chunk;
        let found: Vec<_> =
            found.iter().map(|chunk| (chunk.keyword.clone(), String::from_utf8(chunk.text.clone()).unwrap())).collect();
        let wanted = [("prompt", "a fox, \u{72d0}\n\u{1f98a}!"), ("seed", "7")];
        assert_eq!(found, wanted.map(|(keyword, text)| (keyword.as_bytes().to_vec(), text.to_owned())));
    }

    #[test]
    fn pixels_that_do_not_fit_their_size_are_no_file() {
        let short = Image { height: 17, ..image(16, 16, 3) };
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Webp] {
            assert!(short.encode(ImageEncoding { format, quality: 100 }, &Vec::new()).is_err(), "{format:?}");
        }
    }

    fn rows(image: &Image, row: u32, count: usize, partial: bool) -> Vec<u8> {
        let &Image { width, height, .. } = image;
        let header = ImageHeader::new(width, height).index(2).partial(partial).step(1).row(row);
        let row_bytes = 3 * width as usize;
        ImageBlock::encode(&header, &image.pixels[row as usize * row_bytes..][..count * row_bytes]).unwrap()
    }

    #[test]
    fn rows_become_images_and_only_in_their_order() {
        let mut assembler = ImageAssembler::new(5, 7);
        for partial in [true, false] {
            let image = image(5, 7, if partial { 5 } else { 11 });
            assert_eq!(assembler.take(&rows(&image, 0, 3, partial)).unwrap(), None);
            assert!(assembler.take(&rows(&image, 0, 3, partial)).is_err());
            assert!(assembler.take(&rows(&image, 4, 3, partial)).is_err());
            let assembled = assembler.take(&rows(&image, 3, 4, partial)).unwrap();
            assert_eq!(assembled, Some(AssembledImage { image, partial: partial.then_some(2) }));
        }
        assert!(assembler.take(&rows(&image(7, 5, 1), 0, 5, false)).is_err());
        assert!(assembler.take(b"??").is_err());
    }
}
