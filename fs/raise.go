package fs

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A guard page raises once. The host kernel, though, asks for a page two or three times before it gives the program SIGBUS:
// after a READ that failed it takes the fault again from the start, until it has run out of locks to give up in between. All
// of these are one touch, and must fail. Whether a READ belongs to a new touch is told by the thread's own count of page
// faults, which perf counts by the processor's exceptions, not by the host's tries.

// raise is a touch that failed for good.
type raise struct {
	tid    uint32
	page   uint64
	faults int // perf's counter of the thread's page faults since; −1 = there is none
	left   int // READs that still count as the same touch, without a counter
	expiry *time.Timer
}

const (
	raiseLife  = 10 * time.Second // no touch takes as long as that
	maxRaises  = 64               // at once, of one process
	readsTouch = 3                // READs of a touch at most
)

// raises is the touches of a process's guard pages that are under way.
type raises struct {
	mu sync.Mutex
	// +checklocks:mu
	list []*raise
}

// add notes that a thread's touch of a page has raised.
func (r *raises) add(tid uint32, page uint64) {
	n := &raise{tid: tid, page: page, faults: openFaultCounter(tid), left: readsTouch - 1}
	n.expiry = time.AfterFunc(raiseLife, func() { r.end(n) })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, n)
	if len(r.list) > maxRaises {
		r.endLocked(r.list[0])
	}
}

// goesOn says whether a READ of a page is still of a touch that has raised.
func (r *raises) goesOn(tid uint32, page uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.list {
		if n.tid != tid || n.page != page {
			continue
		}
		if n.same() {
			return true
		}
		r.endLocked(n)
		return false
	}
	return false
}

// same says whether the thread has taken no page fault since.
func (n *raise) same() bool {
	if n.faults < 0 {
		n.left--
		return n.left >= 0
	}
	var count [8]byte
	if _, err := unix.Read(n.faults, count[:]); err != nil {
		return false
	}
	return binary.NativeEndian.Uint64(count[:]) == 0
}

func (r *raises) end(n *raise) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLocked(n)
}

// +checklocks:r.mu
func (r *raises) endLocked(n *raise) {
	for i, o := range r.list {
		if o == n {
			r.list = append(r.list[:i], r.list[i+1:]...)
			n.expiry.Stop()
			if n.faults >= 0 {
				_ = unix.Close(n.faults)
			}
			return
		}
	}
}

// close ends them all.
func (r *raises) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.list) > 0 {
		r.endLocked(r.list[0])
	}
}

// openFaultCounter counts a thread's page faults from now on; −1 where that is not allowed.
func openFaultCounter(tid uint32) int {
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_SOFTWARE,
		Size:   unix.PERF_ATTR_SIZE_VER0,
		Config: unix.PERF_COUNT_SW_PAGE_FAULTS,
		Bits:   unix.PerfBitExcludeHv,
	}
	fd, err := unix.PerfEventOpen(&attr, int(tid), -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err == unix.EACCES || err == unix.EPERM {
		attr.Bits |= unix.PerfBitExcludeKernel
		fd, err = unix.PerfEventOpen(&attr, int(tid), -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	}
	if err != nil {
		return -1
	}
	return fd
}
