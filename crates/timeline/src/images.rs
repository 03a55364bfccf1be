//! The files a recording refers to, as a guest takes them.

use disk::{Base, DiskError, Format, Image};
use recording::{Error, ImageRef, Recording, Source};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The longest kernel or initrd that is read into memory, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// All of a file that the recording refers to or carries.
pub fn read_whole(recording: &Recording, image: &ImageRef) -> Result<Vec<u8>, Error> {
    let source = recording.image(image)?;
    if source.size() > FILE_BYTES_MAX {
        let why = format!("{} bytes are more than a kernel or initrd has", source.size());
        return Err(Error::ImageChanged { what: "file".into(), path: source.path().to_owned(), why });
    }
    let mut bytes = vec![0; source.size() as usize];
    source.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// A raw disk inside of a packed recording.
struct Packed(Source);

impl Base for Packed {
    fn len(&self) -> u64 {
        self.0.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf).map_err(io::Error::other)
    }
    fn name(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

/// The disk behind an image.
pub fn open_disk(
    recording: &Recording,
    image: &ImageRef,
    format: Format,
) -> Result<Arc<dyn Base>, DiskOpenError> {
    if !image.packed {
        return Ok(Arc::new(Image::open_as(&image.path, Some(format))?));
    }
    let source = recording.image(image)?;
    if format == Format::Raw {
        return Ok(Arc::new(Packed(source)));
    }
    Ok(Arc::new(unpacked(&source, format)?))
}

/// A packed image of a format that only files are read in, unpacked into a nameless one.
fn unpacked(source: &Source, format: Format) -> Result<Image, DiskOpenError> {
    use std::io::Write;
    const STEP: usize = 1 << 20;
    let path = std::env::temp_dir().join(format!("hindsight-{}-{:p}", std::process::id(), source));
    let failed = |source| DiskError::Unreadable { path: path.clone(), source };
    let mut file = std::fs::File::create_new(&path).map_err(failed)?;
    let mut copy = || {
        let mut buf = vec![0; STEP];
        let mut at = 0;
        while at < source.size() {
            let n = (source.size() - at).min(STEP as u64) as usize;
            source.read_at(at, &mut buf[..n])?;
            file.write_all(&buf[..n]).map_err(failed)?;
            at += n as u64;
        }
        Ok(Image::open_as(&path, Some(format))?)
    };
    let image = copy();
    // Open or failed, nothing needs the name any more.
    let _ = std::fs::remove_file(&path);
    image
}

/// A disk that cannot be opened for a replay.
#[derive(Debug, thiserror::Error)]
pub enum DiskOpenError {
    /// The recording's copy.
    #[error(transparent)]
    Recording(#[from] Error),
    /// The image.
    #[error(transparent)]
    Disk(#[from] DiskError),
}
