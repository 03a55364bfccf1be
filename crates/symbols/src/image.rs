//! Kernel images: `vmlinux` (ELF) and `vmlinuz` (bzImage with a compressed ELF inside).
//!
//! Source: Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header"): `setup_sects` at 0x1f1,
//! "HdrS" at 0x202, `payload_offset` at 0x248 and `payload_length` at 0x24c, counted from the start
//! of the protected-mode code.

use crate::memory::{u16_at, u32_at};
use crate::{Error, Extents, Symbol, Symbols};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol, SymbolKind};
use std::io::Read;

/// An uncompressed kernel larger than this is none.
const IMAGE_BYTES_MAX: u64 = 1 << 30;

fn wrong(what: impl ToString) -> Error {
    Error::Image(what.to_string())
}

/// The loaded parts of a kernel at the addresses it was linked for.
pub fn load(image: &[u8]) -> Result<Extents, Error> {
    let elf = vmlinux(image)?;
    let file = ElfFile64::<Endianness>::parse(&*elf).map_err(wrong)?;
    let (header, endian) = (file.elf_header(), Endianness::Little);
    let mut parts = Vec::new();
    for segment in header.program_headers(endian, &*elf).map_err(wrong)? {
        if segment.p_type(endian) == object::elf::PT_LOAD {
            let bytes =
                segment.data(endian, &*elf).map_err(|()| wrong("a segment is outside of the file"))?;
            parts.push((segment.p_vaddr(endian), bytes));
        }
    }
    parts.sort_by_key(|(at, _)| *at);
    let mut extents = Extents::default();
    let mut end = 0;
    for (at, bytes) in parts {
        // The per-CPU segment of a 64-bit kernel is linked at 0 and does not matter.
        if at < end || at.checked_add(bytes.len() as u64).is_none() {
            return Err(wrong("segments overlap"));
        }
        end = at + bytes.len() as u64;
        extents.push(at, bytes);
    }
    Ok(extents)
}

/// The symbols of an ELF file's own symbol table, such as a `vmlinux` with debug information has.
pub fn elf_symbols(file: &[u8]) -> Result<Symbols, Error> {
    let file = ElfFile64::<Endianness>::parse(file).map_err(wrong)?;
    let named = file.symbols().filter_map(|symbol| {
        let name = symbol.name().ok().filter(|name| !name.is_empty())?.to_owned();
        let kind = match (symbol.kind(), symbol.is_global()) {
            (SymbolKind::Text, true) => 'T',
            (SymbolKind::Text, false) => 't',
            (SymbolKind::Data | SymbolKind::Label | SymbolKind::Unknown, true) => 'D',
            (SymbolKind::Data | SymbolKind::Label | SymbolKind::Unknown, false) => 'd',
            _ => return None,
        };
        (!symbol.is_undefined()).then(|| Symbol { address: symbol.address(), kind, name })
    });
    Ok(Symbols::new(named.collect()))
}

/// The ELF file in an image: itself, or the decompressed payload of a bzImage.
///
/// # Errors
/// When the image is neither, or its payload does not decompress to an ELF file.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, Error> {
    if image.starts_with(b"\x7fELF") {
        return Ok(image.to_vec());
    }
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(wrong("it is neither an ELF file nor a bzImage"));
    }
    if u16_at(image, 0x206).is_none_or(|version| version < 0x208) {
        return Err(wrong("its boot protocol is older than 2.08"));
    }
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let field = |at: usize| u32_at(image, at).map(|value| value as usize);
    let payload = field(0x248).zip(field(0x24c)).and_then(|(offset, length)| {
        let start = ((sectors + 1) * 512).checked_add(offset)?;
        image.get(start..start.checked_add(length)?)
    });
    decompress(payload.ok_or_else(|| wrong("its payload is outside of the file"))?)
}

/// Decompresses a payload; behind the compressed stream stand four bytes with its length.
fn decompress(payload: &[u8]) -> Result<Vec<u8>, Error> {
    let mut elf = Vec::new();
    let mut limited = |reader: &mut dyn Read| reader.take(IMAGE_BYTES_MAX).read_to_end(&mut elf).map(drop);
    match payload {
        [0x1f, 0x8b, ..] => limited(&mut flate2::read::GzDecoder::new(payload)).map_err(wrong)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::Decoder::new(payload).map_err(wrong)?.single_frame();
            limited(&mut decoder).map_err(wrong)?;
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let stream = &payload[..payload.len() - 4];
            limited(&mut lzma_rust2::XzReader::new(stream, false)).map_err(wrong)?;
        }
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => elf = lz4_legacy(blocks)?,
        _ => return Err(wrong("its payload is not compressed with gzip, xz, zstd or LZ4")),
    }
    if elf.starts_with(b"\x7fELF") { Ok(elf) } else { Err(wrong("its payload is not an ELF file")) }
}

/// The legacy LZ4 frame, which the kernel's build uses: blocks of at most 8 MiB, each behind its
/// compressed length, to the end of the payload (here, the length of the whole).
fn lz4_legacy(mut blocks: &[u8]) -> Result<Vec<u8>, Error> {
    const BLOCK_BYTES_MAX: usize = 8 << 20;
    let mut elf = Vec::new();
    while blocks.len() > 4 && (elf.len() as u64) < IMAGE_BYTES_MAX {
        let length = u32_at(blocks, 0).map_or(0, |length| length as usize);
        let block =
            blocks[4..].get(..length).ok_or_else(|| wrong("an LZ4 block is outside of its payload"))?;
        elf.extend(lz4_flex::block::decompress(block, BLOCK_BYTES_MAX).map_err(wrong)?);
        blocks = &blocks[4 + length..];
    }
    Ok(elf)
}
