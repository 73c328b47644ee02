package fs

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/fs/ctl"
)

// operation is a kind of request whose time is kept.
type operation int

const (
	opLookup operation = iota
	opGetAttr
	opSetAttr
	opReadlink
	opMknod
	opMkdir
	opSymlink
	opLink
	opUnlink
	opRmdir
	opRename
	opCreate
	opOpen
	opRead
	opWrite
	opLseek
	opFallocate
	opFlush
	opReadDir
	numOperations
)

var operationNames = [numOperations]string{"lookup", "getattr", "setattr", "readlink", "mknod", "mkdir", "symlink", "link",
	"unlink", "rmdir", "rename", "create", "open", "read", "write", "lseek", "fallocate", "flush", "readdir"}

// faultKinds are what READs that fault are told apart by: the dearest kind of their pages.
var faultKinds = [...]string{"transition", "pagefile"}

// times are how long requests took, until their answers were ready.
type times struct {
	operations [numOperations]ctl.Histogram
	faults     [len(faultKinds)]ctl.Histogram
}

// faulted counts a READ that pages had to come back for.
func (t *times) faulted(soft, hard uint64, d time.Duration) {
	switch {
	case hard > 0:
		t.faults[1].Add(d)
	case soft > 0:
		t.faults[0].Add(d)
	}
}

func (t *times) operationTimes() (list []ctl.Timing) {
	for i := range t.operations {
		list = append(list, ctl.Timing{Name: operationNames[i], Histogram: &t.operations[i]})
	}
	return list
}

func (t *times) faultTimes() (list []ctl.Timing) {
	for i := range t.faults {
		list = append(list, ctl.Timing{Name: faultKinds[i], Histogram: &t.faults[i]})
	}
	return list
}

// residentBytes is the daemon's memory, 0 if it cannot be told.
func residentBytes() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(b))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// timed is the file system as the host's requests reach it: it takes their time.
type timed struct{ *fileSystem }

// end counts a request that has begun at a time.
func (f *fileSystem) end(op operation, began time.Time) {
	f.times.operations[op].Add(time.Since(began))
	f.pace.request(began)
}

func (t timed) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	defer t.end(opLookup, time.Now())
	return t.fileSystem.Lookup(cancel, in, name, out)
}

func (t timed) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer t.end(opGetAttr, time.Now())
	return t.fileSystem.GetAttr(cancel, in, out)
}

func (t timed) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	defer t.end(opGetAttr, time.Now())
	return t.fileSystem.Statx(cancel, in, out)
}

func (t timed) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer t.end(opSetAttr, time.Now())
	return t.fileSystem.SetAttr(cancel, in, out)
}

func (t timed) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	defer t.end(opReadlink, time.Now())
	return t.fileSystem.Readlink(cancel, in)
}

func (t timed) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	defer t.end(opMknod, time.Now())
	return t.fileSystem.Mknod(cancel, in, name, out)
}

func (t timed) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	defer t.end(opMkdir, time.Now())
	return t.fileSystem.Mkdir(cancel, in, name, out)
}

func (t timed) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	defer t.end(opSymlink, time.Now())
	return t.fileSystem.Symlink(cancel, in, target, name, out)
}

func (t timed) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	defer t.end(opLink, time.Now())
	return t.fileSystem.Link(cancel, in, name, out)
}

func (t timed) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	defer t.end(opUnlink, time.Now())
	return t.fileSystem.Unlink(cancel, in, name)
}

func (t timed) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	defer t.end(opRmdir, time.Now())
	return t.fileSystem.Rmdir(cancel, in, name)
}

func (t timed) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	defer t.end(opRename, time.Now())
	return t.fileSystem.Rename(cancel, in, oldName, newName)
}

func (t timed) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer t.end(opCreate, time.Now())
	return t.fileSystem.Create(cancel, in, name, out)
}

func (t timed) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer t.end(opOpen, time.Now())
	return t.fileSystem.Open(cancel, in, out)
}

func (t timed) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	began := time.Now()
	defer t.end(opRead, began)
	result, st := t.fileSystem.Read(cancel, in, buf)
	if r, ok := result.(readReply); ok {
		t.times.faulted(r.set.Soft, r.set.Hard, time.Since(began))
	}
	return result, st
}

func (t timed) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	defer t.end(opWrite, time.Now())
	return t.fileSystem.Write(cancel, in, data)
}

func (t timed) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	defer t.end(opWrite, time.Now())
	return t.fileSystem.Writev(cancel, in, data)
}

func (t timed) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	defer t.end(opLseek, time.Now())
	return t.fileSystem.Lseek(cancel, in, out)
}

func (t timed) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	defer t.end(opFallocate, time.Now())
	return t.fileSystem.Fallocate(cancel, in)
}

func (t timed) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	defer t.end(opFlush, time.Now())
	return t.fileSystem.Flush(cancel, in)
}

func (t timed) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	defer t.end(opReadDir, time.Now())
	return t.fileSystem.ReadDir(cancel, in, out)
}

func (t timed) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	defer t.end(opReadDir, time.Now())
	return t.fileSystem.ReadDirPlus(cancel, in, out)
}
