package fs

import (
	"errors"
	"syscall"
	"time"

	"memfs/mm"
)

// A regular node is the mm.Host of its section: the host kernel's page cache of the file is the section's mapped views.
var (
	_ mm.Host  = (*node)(nil)
	_ mm.Sized = (*node)(nil)
)

// WriteBack has the host kernel send what programs have written in [off, off+n) of the file (n < 0: to the end). If the
// launderer cannot, or there is none, that is no error: the Invalidate that follows sends dirty pages as well, one at a
// time.
func (n *node) WriteBack(off, length int64) error {
	_ = n.launder(off, length)
	return nil
}

// writeBack has the host kernel send everything of the file. A handler passes the gate before. While the launderer is
// still closing the file it has no time for it; that ends soon. Where it cannot do it, the host drops the file's pages.
func (n *node) writeBack() error {
	const patience, step = 5 * time.Second, 2 * time.Millisecond
	for deadline := time.Now().Add(patience); ; time.Sleep(step) {
		err := n.launder(0, -1)
		switch {
		case errors.Is(err, syscall.EBUSY) && time.Now().Before(deadline):
		case mayNotOpen(err), err == nil && n.fs.launderer.Load() == nil && n.openForWriting():
			return n.Invalidate(0, -1)
		default:
			return err
		}
	}
}

// mayNotOpen says whether the launderer has failed because it may not open the file, or has no path by which it could.
func mayNotOpen(err error) bool {
	return errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENXIO)
}

// launder asks the launderer for a write-back. That bytes were sent and refused is no failure of it: the node keeps that
// for the program that wrote them.
//
// A file that is open nowhere for writing has nothing to send: the host writes a file back when a descriptor is closed,
// when a mapping goes, and once more before the last RELEASE, which waits for the WRITEs under way.
func (n *node) launder(off, length int64) error {
	l := n.fs.launderer.Load()
	if l == nil || !n.openForWriting() {
		return nil
	}
	return except((*l).WriteBack(n.id, off, length), notCached, refusals)
}

// Invalidate drops the host kernel's copies of the pages in [off, off+n) (n < 0: to the end), dirty ones being sent first.
func (n *node) Invalidate(off, length int64) error {
	if n.fs.server == nil {
		return nil
	}
	if length < 0 {
		length = 0 // the kernel's word for it
	}
	if st := n.fs.server.InodeNotify(n.id, off, length); !st.Ok() {
		return except(syscall.Errno(st), notCached)
	}
	return nil
}

// notCached are the errors that say that the host kernel has nothing of the file, or that the mount has ended; refusals
// those that we gave to a WRITE ourselves.
var (
	notCached = []syscall.Errno{syscall.ENOENT, syscall.ESTALE, syscall.ENODEV, syscall.ENOTCONN, syscall.EBADF}
	refusals  = []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EACCES}
)

// except is err unless it is one of those that do not matter.
func except(err error, harmless ...[]syscall.Errno) error {
	for _, list := range harmless {
		for _, e := range list {
			if errors.Is(err, e) {
				return nil
			}
		}
	}
	return err
}

// Size is the size of the file as far as the host has told: there are no pages beyond it.
func (n *node) Size() int64 { return n.section.Size() }

// Written reports whether the host kernel may hold bytes of the file that it has not sent.
func (n *node) Written() bool { return n.openForWriting() }

// openForWriting reports whether the host kernel may hold bytes of the file that it has not sent.
func (n *node) openForWriting() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.refs.writers > 0
}

// enterGate lets a handler wait for a write-back, unless too many do so already. leaveGate follows it.
func (f *fileSystem) enterGate() bool { return f.gate.TryEnter() }
func (f *fileSystem) leaveGate()      { f.gate.Leave() }

// forgetAttributes has the host kernel ask for the attributes of a file again. It may wait for requests of the host, so
// it goes its own way.
func (n *node) forgetAttributes() {
	if server := n.fs.server; server != nil {
		go server.InodeNotify(n.id, -1, 0)
	}
}
