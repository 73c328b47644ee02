package fs

import (
	"iter"
	"math"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/fs/ctl"
	"memfs/mm"
)

// recording is a list of the faults on one file. Its memory is charged to the budget as a whole when it begins.
//
// Locks: recording.mu is a leaf.
type recording struct {
	began   time.Time
	charged int
	stopped atomic.Bool

	mu sync.Mutex
	// +checklocks:mu
	faults []ctl.FaultRecord // what is in it stays; room for more is made at the beginning
	// +checklocks:mu
	missed uint64
}

var _ ctl.FaultLog = (*recording)(nil)

// faulted notes a READ.
func (n *node) faulted(in *fuse.ReadIn, set *mm.ReadSet) {
	r := n.recording.Load()
	if r == nil || r.stopped.Load() {
		return
	}
	clip := func(n uint64) uint16 { return uint16(min(n, math.MaxUint16)) }
	f := ctl.FaultRecord{
		Off: int64(in.Offset), Len: in.Size, Pid: in.Pid, Soft: clip(set.Soft), Hard: clip(set.Hard), At: time.Since(r.began),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.faults) == cap(r.faults) {
		r.missed++
		return
	}
	r.faults = append(r.faults, f)
}

// Each yields what was recorded until now.
func (r *recording) Each() iter.Seq[ctl.FaultRecord] {
	r.mu.Lock()
	faults := r.faults
	r.mu.Unlock()
	return func(yield func(ctl.FaultRecord) bool) {
		for _, f := range faults {
			if !yield(f) {
				return
			}
		}
	}
}

// Missed is how many faults found no room.
func (r *recording) Missed() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.missed
}

// record begins a recording of at most so many faults. StatusCommitmentLimit: the budget has no room for it.
func (n *node) record(most int) error {
	r := &recording{began: time.Now(), charged: most * int(unsafe.Sizeof(ctl.FaultRecord{}))}
	if err := n.fs.sys.ChargeRecord(r.charged); err != nil {
		return err
	}
	r.mu.Lock()
	r.faults = make([]ctl.FaultRecord, 0, most)
	r.mu.Unlock()
	n.mu.Lock()
	gone := n.refs.gone
	if !gone {
		r = n.recording.Swap(r)
	}
	n.mu.Unlock()
	n.drop(r)
	if gone {
		return mm.StatusDeleted
	}
	return nil
}

// forgetRecording gives a recording's memory back.
func (n *node) forgetRecording() { n.drop(n.recording.Swap(nil)) }

func (n *node) drop(r *recording) {
	if r != nil {
		n.fs.sys.ReleaseRecord(r.charged)
	}
}

// RecordFaults begins a recording, StopFaults ends it, and ForgetFaults gives its memory back.
func (c controlled) RecordFaults(most int) error { return c.node.record(most) }

// StopFaults returns how many faults there are in it.
func (c controlled) StopFaults() uint64 {
	r := c.node.recording.Load()
	if r == nil {
		return 0
	}
	r.stopped.Store(true)
	r.mu.Lock()
	defer r.mu.Unlock()
	return uint64(len(r.faults))
}

// ForgetFaults ends a recording and gives its memory back.
func (c controlled) ForgetFaults() { c.node.forgetRecording() }

// FaultLog is the recording; nil if there is none.
func (c controlled) FaultLog() ctl.FaultLog {
	if r := c.node.recording.Load(); r != nil {
		return r
	}
	return nil
}
