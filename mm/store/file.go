package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is a page file on disk. It is unlinked as soon as it is made, so its space comes back when the process that holds
// it ends, however it ends. It is opened for direct I/O where the filesystem has it: a page in the host's page cache
// besides the one in our frames would be memory that nobody accounts for.
type File struct {
	name     string
	fd       int
	direct   bool
	reserves atomic.Bool // growing reserves disk space
	punches  atomic.Bool // discarding gives disk space back

	size atomic.Uint64 // slots; changed under mu
	mu   sync.Mutex    // serialises Grow and Close
	// +checklocks:mu
	closed bool
}

// maxVectors is what preadv(2) and pwritev(2) take at once (IOV_MAX).
const maxVectors = 1024

// OpenFile makes a page file of no slots at path and unlinks it at once. If path is a directory, the file is made in it
// under a name of its own. An existing file is refused. One slot is written and taken away again, to learn whether the
// place can be written at all and whether direct I/O works there; see Direct.
func OpenFile(path string) (*File, error) {
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode()&fs.ModeSymlink != 0:
		// A directory may be named through a link; a file may not.
		if info, err = os.Stat(path); err != nil || !info.IsDir() {
			return nil, openError(path, unix.EEXIST)
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, openError(path, err)
	}
	if err == nil && info.IsDir() {
		var suffix [8]byte
		rand.Read(suffix[:]) // never fails
		path = filepath.Join(path, ".memfs-pagefile-"+hex.EncodeToString(suffix[:]))
	} else if err == nil {
		return nil, openError(path, unix.EEXIST)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, openError(path, err)
	}

	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NOATIME
	f := &File{name: path, direct: true}
	f.fd, err = retryFd(func() (int, error) { return unix.Open(path, flags|unix.O_DIRECT, 0o600) })
	if err == unix.EINVAL {
		// Linux checks for direct I/O after it has made the file.
		unix.Unlink(path)
		f.direct = false
		f.fd, err = retryFd(func() (int, error) { return unix.Open(path, flags, 0o600) })
	}
	if err != nil {
		return nil, openError(path, err)
	}
	f.reserves.Store(true)
	f.punches.Store(true)
	if err := unix.Unlink(path); err != nil {
		unix.Close(f.fd)
		return nil, openError(path, err)
	}
	if err := f.probe(); err != nil {
		unix.Close(f.fd)
		return nil, openError(path, err)
	}
	return f, nil
}

func openError(path string, err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return &fs.PathError{Op: "page file", Path: path, Err: err}
}

// probe writes, reads and drops one slot. A filesystem may take O_DIRECT at open and refuse it at the first transfer.
func (f *File) probe() error {
	page := alignedSlots(1)
	_, err := retryFd(func() (int, error) { return unix.Pwrite(f.fd, page, 0) })
	if err == unix.EINVAL && f.direct {
		f.direct = false
		flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
		if err != nil {
			return err
		}
		if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags&^unix.O_DIRECT); err != nil {
			return err
		}
		_, err = retryFd(func() (int, error) { return unix.Pwrite(f.fd, page, 0) })
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return retry(func() error { return unix.Ftruncate(f.fd, 0) })
}

// Name is the absolute path that the file was made at. Nothing is there any more.
func (f *File) Name() string { return f.name }

// Direct reports whether transfers go past the host's page cache. Where they do not, each transfer is followed by
// advice to drop the pages from it.
func (f *File) Direct() bool { return f.direct }

// Reserves reports whether growing has reserved disk space so far. Where the filesystem cannot, the file is sparse and a
// write may find the disk full.
func (f *File) Reserves() bool { return f.reserves.Load() }

// Size is the number of slots that the file has grown to.
func (f *File) Size() uint64 { return f.size.Load() }

// Blocks is how many bytes the disk holds for the file, what it has promised among them.
func (f *File) Blocks() (uint64, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(f.fd, &st) }); err != nil {
		return 0, err
	}
	return uint64(st.Blocks) * 512, nil
}

// ReadSlots reads slots; see Store.
func (f *File) ReadSlots(slot uint64, bufs [][]byte) error {
	return f.transfer("read", slot, bufs, unix.Preadv)
}

// WriteSlots writes slots; see Store.
func (f *File) WriteSlots(slot uint64, bufs [][]byte) error {
	return f.transfer("write", slot, bufs, unix.Pwritev)
}

func (f *File) transfer(op string, slot uint64, bufs [][]byte, vector func(int, [][]byte, int64) (int, error)) error {
	n, err := slotsOf(bufs)
	if err == nil && !inside(slot, n, f.size.Load()) {
		err = errOutside
	}
	if err == nil {
		err = transferAll(bufs, int64(slot*SlotSize), f.direct, func(bufs [][]byte, off int64) (int, error) {
			return vector(f.fd, bufs, off)
		})
	}
	if err != nil {
		return &Error{Path: f.name, Op: op, Slot: slot, Count: n, Err: err}
	}
	if !f.direct {
		f.dropCache(op == "write", int64(slot*SlotSize), int64(n*SlotSize))
	}
	return nil
}

// transferAll calls vector until all of bufs has been transferred from offset off on. A short transfer is taken up where
// it ended; with direct I/O, which knows whole blocks only, at the slot that it ended in.
func transferAll(bufs [][]byte, off int64, direct bool, vector func([][]byte, int64) (int, error)) error {
	owned := false // bufs is our copy, so that its elements may be changed
	for {
		for len(bufs) > 0 && len(bufs[0]) == 0 {
			bufs = bufs[1:]
		}
		if len(bufs) == 0 {
			return nil
		}
		n, err := vector(bufs[:min(len(bufs), maxVectors)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if direct {
			n -= n % SlotSize
		}
		if n <= 0 {
			return io.ErrUnexpectedEOF
		}
		off += int64(n)
		for len(bufs) > 0 && n >= len(bufs[0]) {
			n -= len(bufs[0])
			bufs = bufs[1:]
		}
		if n > 0 {
			if !owned {
				bufs, owned = append([][]byte(nil), bufs...), true
			}
			bufs[0] = bufs[0][n:]
		}
	}
}

// dropCache keeps the host's page cache from holding the range besides us. It is advice: failure changes nothing.
func (f *File) dropCache(written bool, off, n int64) {
	if written {
		unix.SyncFileRange(f.fd, off, n,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}
	unix.Fadvise(f.fd, off, n, unix.FADV_DONTNEED)
}

// Grow reserves disk space, so that a full disk is seen here and not when a page must go. See Store and Reserves.
func (f *File) Grow(slots uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.size.Load()
	switch {
	case f.closed:
		return f.growError(slots, fs.ErrClosed)
	case slots <= old:
		return nil
	case slots > math.MaxInt64/SlotSize:
		return f.growError(slots, unix.EFBIG)
	}
	from, to := int64(old*SlotSize), int64(slots*SlotSize)
	if f.reserves.Load() {
		err := f.reserve(from, to)
		if err == nil {
			f.size.Store(slots)
			return nil
		}
		if err != unix.EOPNOTSUPP && err != unix.ENOSYS {
			// A reservation that failed half-way keeps what it got.
			unix.Ftruncate(f.fd, from)
			return f.growError(slots, err)
		}
		f.reserves.Store(false)
	}
	if err := f.truncate(to); err != nil {
		return f.growError(slots, err)
	}
	f.size.Store(slots)
	return nil
}

func (f *File) growError(slots uint64, err error) error {
	old := f.size.Load()
	return &Error{Path: f.name, Op: "grow", Slot: old, Count: slots - min(slots, old), Err: err}
}

// reserve has the disk promise the bytes [from, to). What cannot be had is not tried: a filesystem allocates all that is
// left before it finds that it is not enough, and everybody else on that disk would find it full meanwhile.
func (f *File) reserve(from, to int64) error {
	var st unix.Statfs_t
	err := retry(func() error { return unix.Fstatfs(f.fd, &st) })
	if err == nil && st.Blocks > 0 && uint64(to-from)/uint64(st.Bsize) > st.Bavail {
		return unix.ENOSPC
	}
	return retry(func() error { return unix.Fallocate(f.fd, 0, from, to-from) })
}

func (f *File) truncate(size int64) error {
	return retry(func() error { return unix.Ftruncate(f.fd, size) })
}

// Discard punches a hole, which also ends the reservation of these slots: writing them again may find the disk full.
// Where the filesystem has no holes nothing is given back until Close, and that is no error. See Store.
func (f *File) Discard(slot, n uint64) error {
	if n == 0 || !f.punches.Load() {
		return nil
	}
	err := error(errOutside)
	if inside(slot, n, f.size.Load()) {
		err = retry(func() error {
			return unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
				int64(slot*SlotSize), int64(n*SlotSize))
		})
	}
	switch err {
	case nil:
		return nil
	case unix.EOPNOTSUPP, unix.ENOSYS:
		f.punches.Store(false)
		return nil
	}
	return &Error{Path: f.name, Op: "discard", Slot: slot, Count: n, Err: err}
}

// Reserve has the disk promise the space of discarded slots again. See Store.
func (f *File) Reserve(slot, n uint64) error {
	if n == 0 || !f.reserves.Load() {
		return nil
	}
	err := error(errOutside)
	if inside(slot, n, f.size.Load()) {
		err = f.reserve(int64(slot*SlotSize), int64((slot+n)*SlotSize))
	}
	if err != nil {
		return &Error{Path: f.name, Op: "grow", Slot: slot, Count: n, Err: err}
	}
	return nil
}

// Close gives the file's disk space back.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	f.size.Store(0) // whatever comes late is outside, and never meets a descriptor number that was given out again
	if err := unix.Close(f.fd); err != nil && err != unix.EINTR {
		return fmt.Errorf("%s: close: %w", f.name, err)
	}
	return nil
}

// FreeSpace is the number of bytes that the caller could still write to the filesystem that path is on.
func FreeSpace(path string) (uint64, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(path, &st) }); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Bavail * uint64(st.Bsize), nil
}

func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

func retryFd(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}
