package fs

import (
	"errors"
	"math"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"memfs/mapping"
	"memfs/mm"
)

// regular is the node of an id if it is a regular file.
func (f *fileSystem) regular(id uint64) (*node, fuse.Status) {
	n := f.nodes.get(id)
	switch {
	case n == nil:
		return nil, fuse.ENOENT
	case n.isDir():
		return nil, fuse.EISDIR
	case n.section == nil:
		return nil, fuse.EINVAL
	}
	return n, fuse.OK
}

// open makes a handle. The host kernel keeps what it has cached of the file: nothing changes behind its back.
func (n *node) open(in *fuse.OpenIn, out *fuse.OpenOut) {
	h := newHandle(n, in.Flags)
	if first := n.opened(h, in.Caller, in.Mode); first {
		n.forgetAttributes()
	}
	out.Fh = n.fs.handles.add(h)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
}

// created is open for a file that the same request made. With O_TRUNC the host kernel asks to take setuid and setgid away
// here too, but they are what the program has just asked for, and nothing was truncated.
func (n *node) created(in *fuse.CreateIn, out *fuse.CreateOut) {
	h := newHandle(n, in.Flags)
	n.mu.Lock()
	n.filling = h.writable() && !sharedWritable(n.protect)
	n.mu.Unlock()
	n.opened(h, in.Caller, 0)
	out.Fh = n.fs.handles.add(h)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	n.mu.Lock()
	defer n.mu.Unlock()
	out.SetAttrTimeout(n.cacheTimeLocked())
}

func newHandle(n *node, flags uint32) *handle {
	return &handle{node: n, access: flags & syscall.O_ACCMODE}
}

// opened counts a handle, and reports whether it is the first one that can write.
func (n *node) opened(h *handle, caller fuse.Caller, openFlags uint32) (firstWriter bool) {
	var kill setIDKill
	if openFlags&fuse.OPEN_KILL_SUIDGID != 0 {
		kill = n.setIDKill(caller)
	}
	if h.writable() {
		n.openedBy(&caller)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	h.seen = n.failures
	n.refs.handles++
	n.killSetIDLocked(kill)
	if !h.writable() {
		return false
	}
	n.refs.writers++
	return n.refs.writers == 1
}

// close ends a handle, and the node with it if that was all that kept it.
func (f *fileSystem) close(fh uint64) {
	h := f.handles.remove(fh)
	if h == nil {
		return
	}
	n := h.node
	n.mu.Lock()
	n.refs.handles--
	if h.writable() {
		n.refs.writers--
		n.filling = n.filling && n.refs.writers > 0
	}
	n.mu.Unlock()
	n.release()
}

// read answers a READ with the frames themselves, which stay pinned until the reply is sent.
func (n *node) read(in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if in.Offset > math.MaxInt64 {
		return nil, fuse.EINVAL
	}
	off := int64(in.Offset)
	size := min(int64(in.Size), math.MaxInt64-off) // the host asks for whole pages, past the largest file too
	read := n.section.Read
	if direct(in.Flags, in.ReadFlags&fuse.READ_LOCKOWNER) {
		read = n.section.ReadPast
	}
	set, err := read(off, int(size), buf)
	if err != nil {
		return nil, errno(err)
	}
	if set != nil {
		n.fs.owners.read(&in.Caller, set.Soft, set.Hard, set.Size())
		n.faulted(in, set)
	}
	if in.Flags&syscall.O_ACCMODE != syscall.O_WRONLY && in.Flags&syscall.O_NOATIME == 0 {
		n.accessed()
	}
	if set == nil { // at or past the end
		return fuse.ReadResultData(nil), fuse.OK
	}
	return readReply{set}, fuse.OK
}

// direct reports whether the host kernel transfers bytes between a program and us without keeping them. The flag of the
// descriptor does not say it alone: a mapping of an O_DIRECT descriptor is cached, but its requests have no lock owner.
func direct(flags, lockOwner uint32) bool { return flags&syscall.O_DIRECT != 0 && lockOwner != 0 }

// readReply is a fuse.ReadResult of pinned frames.
type readReply struct{ set *mm.ReadSet }

// Size is the number of bytes.
func (r readReply) Size() int { return r.set.Size() }

// Done is called when the reply is sent, and unpins the frames.
func (r readReply) Done() { r.set.Done() }

// Slices makes go-fuse send the frames without a copy.
func (r readReply) Slices() ([][]byte, fuse.Status) { return r.set.Slices(), fuse.OK }

// Bytes is the reply in one piece, copied into buf.
func (r readReply) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:0]
	for _, s := range r.set.Slices() {
		buf = append(buf, s...)
	}
	return buf, fuse.OK
}

// write stores the pieces of a WRITE one after the other. What the host kernel sends out of its cache was accepted long
// ago: it is all or an error, and the error is kept for the program's next flush. A program's own write may be cut short.
func (n *node) write(in *fuse.WriteIn, pieces [][]byte) (uint32, fuse.Status) {
	if in.Offset > math.MaxInt64 {
		return 0, efbig
	}
	start := int64(in.Offset)
	off, err := start, error(nil)
	if st := n.mayChange(true); st.Ok() {
		off, err = n.store(start, pieces)
	} else {
		err = syscall.Errno(st)
	}
	if err != nil && !direct(in.Flags, in.WriteFlags&fuse.WRITE_LOCKOWNER) {
		return 0, n.refused(in.WriteFlags, off, start+int64(in.Size)-off, errno(err))
	}
	if err != nil && off == start {
		return 0, errno(err)
	}
	n.wrote(in, int(off-start))
	n.written(in.Caller, in.WriteFlags)
	return uint32(off - start), fuse.OK
}

// store writes the pieces from off on. It returns how far it came.
func (n *node) store(off int64, pieces [][]byte) (int64, error) {
	for _, p := range pieces {
		if err := n.fs.withSpace(func() error { return n.section.Write(off, p) }); err != nil {
			return off, err
		}
		off += int64(len(p))
	}
	return off, nil
}

// refused deals with bytes that the host kernel has in its cache and we could not take: they are to go from there as
// well, and programs are to hear of it.
func (n *node) refused(writeFlags uint32, off, length int64, st fuse.Status) fuse.Status {
	n.fs.sys.RefusedRange(n, off, length)
	if writeFlags&fuse.WRITE_CACHE != 0 {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.failures++
		n.failure = st
	}
	return st
}

// written does to the attributes what a write does. Of what it wrote into its cache, the host kernel tells the times
// itself.
func (n *node) written(caller fuse.Caller, writeFlags uint32) {
	var kill setIDKill
	switch {
	case writeFlags&fuse.WRITE_KILL_SUIDGID != 0:
		kill = n.setIDKill(caller)
	case writeFlags&fuse.WRITE_CACHE != 0:
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.killSetIDLocked(kill)
	if writeFlags&fuse.WRITE_CACHE == 0 {
		n.removeXattrLocked(xattrCapability)
		n.meta.mtime = timeNow()
		n.meta.ctime = n.meta.mtime
	}
}

// flush is the answer to close(2): whether the host kernel could send us everything that programs wrote into its cache.
// The host keeps the failures of a file itself, but only one closing descriptor gets them, and that may be the
// launderer's, which nobody listens to. So each descriptor that can write gets them from us, once. For fsync(2) the host
// keeps count a descriptor, and asks us only if there is nothing to tell.
func (f *fileSystem) flush(fh uint64) fuse.Status {
	if h := f.handles.get(fh); h != nil && h.writable() {
		return h.report()
	}
	return fuse.OK
}

// admit is the answer to what the host kernel asks before it takes a write(2) into its cache, which it does by way of the
// attributes: stat(2) does not name a handle. It tells a program that its last writes were refused, which would otherwise
// go on until it closes the file, and never end if it never does. Only a handle that cannot read is told so: at the end
// of a file the host asks the same way before a read(2).
func (f *fileSystem) admit(fh uint64) fuse.Status {
	if h := f.handles.get(fh); h != nil && h.access == syscall.O_WRONLY {
		return h.report()
	}
	return fuse.OK
}

// report is the failure of a cached write that the handle has not been told of yet.
func (h *handle) report() fuse.Status {
	n := h.node
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.seen == n.failures {
		return fuse.OK
	}
	h.seen = n.failures
	return n.failure
}

// truncate sets the size. The change of times is the caller's.
func (n *node) truncate(size uint64) fuse.Status {
	switch {
	case n.isDir():
		return fuse.EISDIR
	case n.section == nil:
		return fuse.EINVAL
	case size > math.MaxInt64:
		return efbig
	}
	return errno(n.section.Truncate(int64(size)))
}

// fallocate promises, frees or zeroes a range.
func (n *node) fallocate(in *fuse.FallocateIn) fuse.Status {
	off, length := int64(in.Offset), int64(in.Length)
	switch {
	case off < 0 || length <= 0:
		return fuse.EINVAL
	case off > math.MaxInt64-length:
		return efbig
	}
	if st := n.mayChange(true); !st.Ok() {
		return st
	}
	err := n.fs.withSpace(func() error { return fallocate(n.section, in.Mode, off, length) })
	if err != nil {
		return errno(err)
	}
	kill := n.setIDKillUnlessCapable(in.Caller) // which the host kernel leaves to us without asking for it
	n.mu.Lock()
	defer n.mu.Unlock()
	n.killSetIDLocked(kill)
	n.removeXattrLocked(xattrCapability)
	n.meta.mtime = timeNow()
	n.meta.ctime = n.meta.mtime
	return fuse.OK
}

func fallocate(s *mapping.Section, mode uint32, off, length int64) error {
	keepSize := mode&unix.FALLOC_FL_KEEP_SIZE != 0
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		return s.Allocate(off, length, keepSize)
	case unix.FALLOC_FL_PUNCH_HOLE:
		if !keepSize {
			return syscall.EOPNOTSUPP
		}
		return s.Punch(off, length)
	case unix.FALLOC_FL_ZERO_RANGE:
		if err := s.Punch(off, length); err != nil {
			return err
		}
		return s.Allocate(off, length, keepSize)
	}
	return syscall.EOPNOTSUPP
}

// lseek finds data or a hole. What programs have written and the host kernel has not sent counts, so it is sent first.
// Where that cannot be had, the host answers by itself from then on (ENOSYS): everything up to the end is data.
func (n *node) lseek(in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if n.openForWriting() {
		if st := n.sendAll(); !st.Ok() {
			return st
		}
	}
	if in.Offset > math.MaxInt64 {
		return enxio
	}
	off, err := int64(0), error(syscall.EINVAL)
	switch in.Whence {
	case unix.SEEK_DATA:
		off, err = n.section.SeekData(int64(in.Offset))
	case unix.SEEK_HOLE:
		off, err = n.section.SeekHole(int64(in.Offset))
	}
	out.Offset = uint64(off)
	return errno(err)
}

// sendAll is writeBack for a handler: EBUSY if too many wait already, ENOSYS if it cannot be had.
func (n *node) sendAll() fuse.Status {
	f := n.fs
	if f.launderer.Load() == nil {
		return fuse.ENOSYS
	}
	if !f.seeks.TryEnter() {
		return fuse.EBUSY
	}
	defer f.seeks.Leave()
	switch err := n.writeBack(); {
	case err == nil:
		return fuse.OK
	case errors.Is(err, syscall.EBUSY):
		return fuse.EBUSY // ENOSYS would be for good
	}
	return fuse.ENOSYS
}
