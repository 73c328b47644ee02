package fs

import (
	"runtime/metrics"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/mm/process"
	"memfs/mm/win32"
)

// systemName is the folder of the system process, which is there from the start.
const systemName = "System"

// startSystem starts the system process: the mount's owner's, for everybody to see and nobody to end.
func (f *fileSystem) startSystem(t *processTable) error {
	p, err := t.machine.StartSystem(func() []process.SystemRegion { return f.systemRegions(t) })
	if err != nil {
		return err
	}
	s := &simulated{name: systemName, owner: fuse.Owner{Uid: f.opts.UID, Gid: f.opts.GID}, born: time.Now(), system: true}
	r := &running{process: p, session: win32.NewSession(t.machine, p, nil)}
	r.mu.Lock()
	r.used = true // there is nothing to choose
	r.mu.Unlock()
	s.run.Store(r)
	if st := t.enter(s); !st.Ok() {
		t.machine.End(p)
		return syscall.Errno(st)
	}
	return nil
}

// systemRegions is what the kernel side of this mount needs. None of it is ever paged out: the paged pool has its name for
// what Windows keeps there.
func (f *fileSystem) systemRegions(t *processTable) []process.SystemRegion {
	s := f.sys.Snapshot()
	paged := min(f.inodes.Load()*nodeBytes, s.RecordBytes)
	session := min(t.machine.RecordBytes(), s.RecordBytes-paged)
	return []process.SystemRegion{
		{Use: "kernel stacks", Base: process.KernelStacksBase, Bytes: stackBytes()},
		{Use: "paged pool", Base: process.PagedPoolBase, Bytes: paged},       // inodes
		{Use: "session pool", Base: process.SessionPoolBase, Bytes: session}, // processes, their allocations and handles
		{Use: "PFN database", Base: process.PFNDatabaseBase, Bytes: s.Budget.PFNBytes},
		{Use: "non-paged pool", Base: process.NonPagedPoolBase, Bytes: s.RecordBytes - paged - session}, // PTEs, slots, names
	}
}

// stackBytes is the stacks of the daemon's own threads, which are the kernel's here.
func stackBytes() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}, {Name: "/memory/classes/os-stacks:bytes"}}
	metrics.Read(samples)
	var n uint64
	for _, s := range samples {
		if s.Value.Kind() == metrics.KindUint64 {
			n += s.Value.Uint64()
		}
	}
	return n
}
