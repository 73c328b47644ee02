package fs

import (
	"bytes"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// go-fuse's interface. Every method sends its request to the control tree or to the node it is about; what the control
// tree does not have is refused here.

var _ fuse.RawFileSystem = (*fileSystem)(nil)

func isControl(id uint64) bool { return id&controlBit != 0 }

func (f *fileSystem) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.lookup(cancel, in, name, out)
	}
	return f.lookup(in.NodeId, name, out)
}

func (f *fileSystem) Forget(id, lookups uint64) {
	if isControl(id) {
		f.control.forget(id, lookups)
	} else if n := f.nodes.get(id); n != nil {
		n.forget(lookups)
	}
}

func (f *fileSystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.getattr(cancel, in, out)
	}
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		if st := f.admit(in.Fh()); !st.Ok() {
			return st
		}
	}
	n.getattr(out)
	return fuse.OK
}

func (f *fileSystem) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	if isControl(in.NodeId) {
		return f.controlStatx(cancel, in, out)
	}
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	n.statx(out)
	return fuse.OK
}

// controlStatx is the control tree's getattr in the form of statx(2); nothing there was ever born.
func (f *fileSystem) controlStatx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	var attr fuse.AttrOut
	st := f.control.getattr(cancel, &fuse.GetAttrIn{InHeader: in.InHeader}, &attr)
	out.Statx = statxOf(&attr.Attr)
	out.AttrValid, out.AttrValidNsec = attr.AttrValid, attr.AttrValidNsec
	return st
}

func (f *fileSystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.setattr(cancel, in, out)
	}
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	return n.setattr(in, out)
}

func (f *fileSystem) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if isControl(in.NodeId) {
		return fuse.EPERM
	}
	c := creation{caller: in.Caller, mode: in.Mode, umask: in.Umask, rdev: in.Rdev}
	switch in.Mode & syscall.S_IFMT {
	case syscall.S_IFREG, syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK:
	case 0:
		c.mode |= syscall.S_IFREG
	default:
		return fuse.EINVAL
	}
	_, st := f.create(in.NodeId, name, c, out)
	return st
}

func (f *fileSystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.mkdir(in, name, out)
	}
	c := creation{caller: in.Caller, mode: syscall.S_IFDIR | in.Mode&permMask, umask: in.Umask}
	_, st := f.create(in.NodeId, name, c, out)
	return st
}

func (f *fileSystem) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if isControl(in.NodeId) {
		return fuse.EPERM
	}
	c := creation{caller: in.Caller, mode: syscall.S_IFLNK | 0777, target: target}
	_, st := f.create(in.NodeId, name, c, out)
	return st
}

func (f *fileSystem) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	if isControl(in.NodeId) {
		return f.control.readlink(in)
	}
	n := f.nodes.get(in.NodeId)
	switch {
	case n == nil:
		return nil, fuse.ENOENT
	case n.kind != syscall.S_IFLNK:
		return nil, fuse.EINVAL
	}
	n.accessed()
	return []byte(n.target), fuse.OK
}

func (f *fileSystem) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if isControl(in.NodeId) || isControl(in.Oldnodeid) {
		return fuse.EPERM
	}
	return f.link(in.NodeId, name, in.Oldnodeid, out)
}

func (f *fileSystem) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if isControl(in.NodeId) {
		return fuse.EPERM
	}
	return f.remove(in.NodeId, name, false)
}

func (f *fileSystem) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.rmdir(in, name)
	}
	return f.remove(in.NodeId, name, true)
}

func (f *fileSystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if isControl(in.NodeId) || isControl(in.Newdir) {
		return fuse.EPERM
	}
	return f.rename(in, oldName, newName)
}

func (f *fileSystem) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if isControl(in.NodeId) {
		return 0, fuse.ENODATA
	}
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return 0, fuse.ENOENT
	}
	return n.getXattr(name, dest)
}

func (f *fileSystem) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if isControl(in.NodeId) {
		return 0, fuse.OK
	}
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return 0, fuse.ENOENT
	}
	return n.listXattr(in.Uid, dest)
}

func (f *fileSystem) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	if isControl(in.NodeId) {
		return fuse.ENOTSUP
	}
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	return n.setXattr(in, name, data)
}

func (f *fileSystem) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if isControl(in.NodeId) {
		return fuse.ENODATA
	}
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	return n.removeXattr(name)
}

func (f *fileSystem) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if isControl(in.NodeId) {
		return fuse.EPERM
	}
	n, st := f.create(in.NodeId, name, regularCreation(in), &out.EntryOut)
	if st.Ok() {
		n.created(in, out)
	}
	return st
}

func (f *fileSystem) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if isControl(in.NodeId) {
		return fuse.ENOTSUP
	}
	n, st := f.createUnnamed(in.NodeId, regularCreation(in), &out.EntryOut)
	if st.Ok() {
		n.created(in, out)
	}
	return st
}

func regularCreation(in *fuse.CreateIn) creation {
	return creation{caller: in.Caller, mode: syscall.S_IFREG | in.Mode&permMask, umask: in.Umask}
}

func (f *fileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.open(cancel, in, out)
	}
	n, st := f.regular(in.NodeId)
	if st.Ok() {
		st = n.mayOpen(in.Flags)
	}
	if st.Ok() {
		n.open(in, out)
	}
	return st
}

func (f *fileSystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if isControl(in.NodeId) {
		return f.control.read(cancel, in, buf)
	}
	n, st := f.regular(in.NodeId)
	if !st.Ok() {
		return nil, st
	}
	return n.read(in, buf)
}

func (f *fileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return f.Writev(cancel, in, [][]byte{data})
}

func (f *fileSystem) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if isControl(in.NodeId) {
		return f.control.write(cancel, in, bytes.Join(data, nil))
	}
	n, st := f.regular(in.NodeId)
	if !st.Ok() {
		return 0, st
	}
	return n.write(in, data)
}

func (f *fileSystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.lseek(in, out)
	}
	n, st := f.regular(in.NodeId)
	if !st.Ok() {
		return st
	}
	return n.lseek(in, out)
}

func (f *fileSystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if isControl(in.NodeId) {
		return fuse.ENOTSUP
	}
	n, st := f.regular(in.NodeId)
	if !st.Ok() {
		return st
	}
	return n.fallocate(in)
}

func (f *fileSystem) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.flush(cancel, in)
	}
	return f.flush(in.Fh)
}

func (f *fileSystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.fsync(cancel, in)
	}
	return fuse.OK // the host kernel has told of what failed by itself: see fileSystem.flush
}

func (f *fileSystem) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if isControl(in.NodeId) {
		f.control.release(cancel, in)
		return
	}
	f.close(in.Fh)
}

func (f *fileSystem) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.opendir(cancel, in, out)
	}
	_, st := f.directory(in.NodeId)
	return st
}

func (f *fileSystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.readdir(cancel, in, out, false)
	}
	return f.readDir(in, out, false)
}

func (f *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if isControl(in.NodeId) {
		return f.control.readdir(cancel, in, out, true)
	}
	return f.readDir(in, out, true)
}

func (f *fileSystem) ReleaseDir(in *fuse.ReleaseIn) {
	if isControl(in.NodeId) {
		f.control.releasedir(in)
	}
}

func (f *fileSystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (f *fileSystem) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	f.statFs(out)
	return fuse.OK
}
