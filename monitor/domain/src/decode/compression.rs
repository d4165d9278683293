//! kombu's compressions, unpacked up to a bound.

use std::io::Read;

use crate::reject::RejectReason;

/// Memory that an xz stream may ask for: presets 0–7. Python's default preset needs 9 MiB.
const XZ_MEMORY: u64 = 20 << 20;
/// Window that a zstd frame may ask for, as a power of two: levels up to 19 need 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 24;

/// Unpacks `bytes` as the header `compression` says, to at most `max` bytes.
pub(crate) fn unpack(name: &str, bytes: &[u8], max: usize) -> Result<Vec<u8>, (RejectReason, String)> {
    match name {
        // Python says gzip and writes zlib; others write what they say.
        "application/x-gzip" | "gzip" | "zlib" if bytes.starts_with(&[0x1f, 0x8b]) => {
            read(flate2::read::GzDecoder::new(bytes), max)
        }
        "application/x-gzip" | "gzip" | "zlib" => read(flate2::read::ZlibDecoder::new(bytes), max),
        "application/x-bz2" | "application/x-bzip2" | "bzip2" | "bzip" => read(bzip2::read::BzDecoder::new(bytes), max),
        "application/x-lzma" | "lzma" | "xz" => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0).map_err(invalid)?;
            read(liblzma::read::XzDecoder::new_stream(bytes, stream), max)
        }
        "application/x-brotli" | "brotli" => read(brotli_decompressor::Decompressor::new(bytes, 4096), max),
        "application/zstd" | "zstd" | "zstandard" => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(invalid)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(invalid)?;
            read(decoder, max)
        }
        other => Err((RejectReason::UnknownCompression, format!("compression {other:?}"))),
    }
}

fn read(reader: impl Read, max: usize) -> Result<Vec<u8>, (RejectReason, String)> {
    let mut out = Vec::new();
    reader.take(max as u64 + 1).read_to_end(&mut out).map_err(invalid)?;
    if out.len() > max {
        return Err((RejectReason::DecompressedOversize, format!("more than {max} bytes")));
    }
    Ok(out)
}

fn invalid(error: impl std::fmt::Display) -> (RejectReason, String) {
    (RejectReason::InvalidCompression, error.to_string())
}
