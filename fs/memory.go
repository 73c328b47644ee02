package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/fs/ctl"
	"memfs/mm/process"
)

// .proc/PROCESS/mem is the address space of a process: the byte at an offset is the one at that virtual address. read(2) and
// write(2) are loads and stores of the process; what these do not allow is EFAULT. A mapping shows the process's pages for as
// long as the host kernel caches them (see process.Window): what a page does not allow is SIGBUS at the touch.

// memorySize is the size of the file, whatever the process's architecture.
const memorySize = 1 << 47

// isMemory says that the node is a process's mem.
func (n *controlNode) isMemory() bool {
	return n.kind == controlProcessRow && ctl.PerProcess[n.row].Name == ctl.MemoryName
}

// window is the window of a mem.
func (c *controlTree) window(n *controlNode) *process.Window {
	return n.proc.use().process.Window(memoryCache{c.fs, n.id()})
}

// memoryCache is the host kernel's cache of a mem.
type memoryCache struct {
	fs *fileSystem
	id uint64
}

func (m memoryCache) Invalidate(off, n int64) error {
	if m.fs.server == nil {
		return nil
	}
	if n < 0 {
		n = 0 // the kernel's word for everything
	}
	if st := m.fs.server.InodeNotify(m.id, off, n); !st.Ok() {
		return except(syscall.Errno(st), notCached)
	}
	return nil
}

// readMemory answers a READ of a mem. One without a lock owner fills the host's cache for a mapping.
func (c *controlTree) readMemory(h *controlHandle, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if in.Offset >= memorySize {
		return fuse.ReadResultData(nil), fuse.OK
	}
	w := c.window(&h.node)
	buf = buf[:min(uint64(len(buf)), memorySize-in.Offset)]
	if in.ReadFlags&fuse.READ_LOCKOWNER != 0 {
		n, st := c.direct(false, func(views bool) (int, error) { return w.ReadDirect(in.Offset, buf, views) })
		if !st.Ok() {
			return nil, st // a result would be sent as success
		}
		return fuse.ReadResultData(buf[:n]), fuse.OK
	}
	raising := &h.node.proc.raises
	page := in.Offset >> 12
	if len(buf) <= 1<<12 && raising.goesOn(in.Pid, page) {
		return nil, fuse.Status(syscall.EFAULT)
	}
	err := w.Fault(in.Offset, buf, func() bool { return h.mayStore(in.Pid, in.Offset, uint64(len(buf))) })
	var e *process.Exception
	if errors.As(err, &e) && (e.Code == process.StatusGuardPageViolation || e.Code == process.StatusStackOverflow) {
		raising.add(in.Pid, page)
	}
	if err != nil {
		return nil, memoryErrno(err)
	}
	return fuse.ReadResultData(buf), fuse.OK
}

// writeMemory answers a WRITE of a mem.
func (c *controlTree) writeMemory(h *controlHandle, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if in.Offset >= memorySize || uint64(len(data)) > memorySize-in.Offset {
		return 0, efbig
	}
	w := c.window(&h.node)
	if in.WriteFlags&fuse.WRITE_CACHE != 0 {
		return uint32(len(data)), memoryErrno(w.WriteBack(in.Offset, data))
	}
	n, st := c.direct(len(data) > smallWrite, func(views bool) (int, error) { return w.WriteDirect(in.Offset, data, views) })
	return uint32(n), st
}

// direct is a read(2) or write(2) of memory. What lies in views of files waits for the host, as a call in ctl does, and passes
// the same gate: it is only then let at views. EBUSY; at once for a write that keeps one of the buffers that the host's own WRITEs
// need (large).
func (c *controlTree) direct(large bool, access func(views bool) (int, error)) (int, fuse.Status) {
	n, err := access(false)
	if errors.Is(err, process.ErrView) {
		gate := c.env.Gate
		if large && !gate.TryEnter() || !large && !enterPatiently(gate) {
			return 0, fuse.EBUSY
		}
		defer gate.Leave()
		n, err = access(true)
	}
	return n, memoryErrno(err)
}

// memoryErrno is EFAULT for everything that a process is not allowed, EIO if its page cannot be had.
func memoryErrno(err error) fuse.Status {
	var e *process.Exception
	switch {
	case err == nil:
		return fuse.OK
	case errors.As(err, &e) && e.Code == process.StatusInPageError:
		return fuse.EIO
	case errors.As(err, &e), errors.Is(err, process.NoAccessError), errors.Is(err, process.AccessDenied):
		return fuse.Status(syscall.EFAULT)
	case errors.Is(err, process.Busy):
		return fuse.EBUSY
	}
	return fuse.EIO
}

// mayStore says whether the program of a thread may store into what it has mapped of [off, off+n) through the handle. The
// host does not ask before a store into a page that it has. A program's mappings are in /proc; looking there may wait for a
// thread of it that waits for us, so it is done for a moment only, and what is not known may be.
func (h *controlHandle) mayStore(tid uint32, off, n uint64) bool {
	if h.access != syscall.O_RDWR {
		return false
	}
	known := make(chan bool, 1)
	go func() { known <- mapsWritable(tid, h.node.id(), off, n) }()
	const moment = 20 * time.Millisecond
	t := time.NewTimer(moment)
	defer t.Stop()
	select {
	case writable := <-known:
		return writable
	case <-t.C:
		return true
	}
}

// mapsWritable says whether a program has a shared, writable mapping of a part of [off, off+n) of an inode, or cannot be
// looked at.
func mapsWritable(tid uint32, inode, off, n uint64) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", tid))
	if err != nil {
		return true
	}
	ino := []byte(" " + strconv.FormatUint(inode, 10) + " ")
	for line := range bytes.Lines(text) {
		if !bytes.Contains(line, ino) {
			continue
		}
		// 7f0000000000-7f0000001000 rw-s 00010000 00:2d 4611686018427387904 path
		f := strings.Fields(string(line))
		low, high, _ := strings.Cut(f[0], "-")
		start, _ := strconv.ParseUint(low, 16, 64)
		end, _ := strconv.ParseUint(high, 16, 64)
		at, err := strconv.ParseUint(f[2], 16, 64)
		if err != nil || at < off+n && off < at+end-start && f[1][1] == 'w' && f[1][3] == 's' {
			return true
		}
	}
	return false
}

// lseek finds memory that is there, or is not, at or after an offset.
func (c *controlTree) lseek(in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := c.handle(in.Fh)
	if h == nil || !h.node.isMemory() {
		return fuse.EINVAL
	}
	const seekData, seekHole = 3, 4
	if in.Offset >= memorySize {
		return enxio
	}
	p := h.node.proc.process()
	for at := in.Offset; ; {
		r, err := p.Query(at)
		there := err == nil && r.State == process.StateCommit
		switch {
		case in.Whence == seekData && there, in.Whence == seekHole && !there:
			out.Offset = max(in.Offset, r.BaseAddress)
			if err != nil {
				out.Offset = at
			}
			return fuse.OK
		case in.Whence != seekData && in.Whence != seekHole:
			return fuse.EINVAL
		case err != nil:
			return enxio // nothing more
		}
		at = r.BaseAddress + r.RegionSize
	}
}
