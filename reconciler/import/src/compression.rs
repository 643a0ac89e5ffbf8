//! Decompression of packages' parts, by the names that dpkg and rpm have for it.

use std::io::{self, BufReader, Read};

use liblzma::read::XzDecoder;
use liblzma::stream::Stream;

/// Memory that an xz stream may ask for: `xz -9` needs 65 MiB.
const XZ_MEMORY_BYTES: u64 = 512 << 20;
/// The largest zstd window, as a power of two; `zstd --ultra -22` needs 27.
const ZSTD_WINDOW_LOG: u32 = 27;
const BUFFER_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Xz,
    Lzma,
    Zstd,
    Bzip2,
}

impl Compression {
    /// From what follows `data.tar` or `control.tar` in a member's name.
    pub fn from_suffix(suffix: &str) -> Option<Self> {
        Some(match suffix {
            "" => Compression::None,
            ".gz" => Compression::Gzip,
            ".xz" => Compression::Xz,
            ".lzma" => Compression::Lzma,
            ".zst" => Compression::Zstd,
            _ => return None,
        })
    }

    /// As an RPM package names it.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "" | "none" => Compression::None,
            "gzip" => Compression::Gzip,
            "bzip2" => Compression::Bzip2,
            "xz" => Compression::Xz,
            "lzma" => Compression::Lzma,
            "zstd" => Compression::Zstd,
            _ => return None,
        })
    }

    /// A reader of the plain bytes. Its end is the end of a whole stream: a
    /// cut one gives an error.
    ///
    /// # Errors
    /// Where the decoder cannot be made.
    pub fn reader<'r>(self, input: impl Read + Send + 'r) -> io::Result<Box<dyn Read + Send + 'r>> {
        let input = BufReader::with_capacity(BUFFER_BYTES, input);
        Ok(match self {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Compression::Xz => {
                let stream =
                    Stream::new_stream_decoder(XZ_MEMORY_BYTES, liblzma::stream::CONCATENATED)
                        .map_err(io::Error::other)?;
                Box::new(XzDecoder::new_stream(input, stream))
            }
            Compression::Lzma => {
                let stream = Stream::new_lzma_decoder(XZ_MEMORY_BYTES).map_err(io::Error::other)?;
                Box::new(XzDecoder::new_stream(input, stream))
            }
            Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }
}
