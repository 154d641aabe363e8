//! The partition table of a disk, read over its link before the kernel has it: the helper is told numbers, and parses
//! nothing of what another machine wrote.

use std::io::{self, Read, Seek, SeekFrom};

use netbus_proto::class::block::Geometry;
use tokio::runtime::Handle;

use super::super::nbd::{REPLY_LEN, check_reply, read_request};
use crate::class::block::partitions::{self, Partition};
use crate::kernel::GrantedLink;

/// How much is asked for at once, in bytes: what one record carries, and the largest block.
const CHUNK: u64 = 8 * 1024;

/// Reads the table. The link is between two requests again afterwards.
///
/// # Errors
/// The link's, or the device's. The link is of no use then.
pub(super) async fn read(link: GrantedLink, geometry: Geometry) -> io::Result<(GrantedLink, Vec<Partition>)> {
    let runtime = Handle::current();
    let reading = tokio::task::spawn_blocking(move || {
        let mut disk = LinkDisk { link, runtime, geometry, position: 0, chunk: (0, Vec::new()) };
        let partitions = partitions::read(&mut disk, geometry.size, geometry.block_size)?;
        Ok((disk.link, partitions))
    });
    reading.await.map_err(io::Error::other)?
}

/// A disk at the other end of a link, one request at a time.
struct LinkDisk {
    link: GrantedLink,
    runtime: Handle,
    geometry: Geometry,
    position: u64,
    /// What was read last, and where.
    chunk: (u64, Vec<u8>),
}

impl LinkDisk {
    fn fetch(&mut self, offset: u64) -> io::Result<()> {
        let length = CHUNK.min(self.geometry.size - offset);
        let whole = REPLY_LEN + usize::try_from(length).map_err(io::Error::other)?;
        let request = read_request(offset, u32::try_from(length).map_err(io::Error::other)?);
        let exchange = self.link.exchange(&request, |reply| match reply.first_chunk() {
            None => Ok(None),
            Some(header) => check_reply(header).map(|()| Some(whole)),
        });
        let mut reply = self.runtime.block_on(exchange)?;
        self.chunk = (offset, reply.split_off(REPLY_LEN));
        Ok(())
    }
}

impl Read for LinkDisk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.geometry.size {
            return Ok(0);
        }
        let offset = self.position - self.position % CHUNK;
        if self.chunk.1.is_empty() || self.chunk.0 != offset {
            self.fetch(offset)?;
        }
        let at = usize::try_from(self.position - offset).map_err(io::Error::other)?;
        let rest = &self.chunk.1[at..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for LinkDisk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => self.geometry.size.checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
