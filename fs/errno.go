package fs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/mm"
)

// Statuses that go-fuse has no name for.
const (
	eexist       = fuse.Status(syscall.EEXIST)
	enotempty    = fuse.Status(syscall.ENOTEMPTY)
	enospc       = fuse.Status(syscall.ENOSPC)
	efbig        = fuse.Status(syscall.EFBIG)
	enxio        = fuse.Status(syscall.ENXIO)
	estale       = fuse.Status(syscall.ESTALE)
	emlink       = fuse.Status(syscall.EMLINK)
	e2big        = fuse.Status(syscall.E2BIG)
	enametoolong = fuse.Status(syscall.ENAMETOOLONG)
)

// errno is what a program sees of an error of the memory manager, of the launderer or of the host kernel. It is the one
// place that turns mm.Status into an errno.
func errno(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var status mm.Status
	if errors.As(err, &status) {
		return statusErrno(status)
	}
	var sys syscall.Errno
	if errors.As(err, &sys) {
		return fuse.Status(sys)
	}
	return fuse.EIO
}

func statusErrno(status mm.Status) fuse.Status {
	switch status {
	case mm.StatusSuccess:
		return fuse.OK
	case mm.StatusCommitmentLimit:
		return enospc
	case mm.StatusInvalidParameter:
		return fuse.EINVAL
	case mm.StatusFileTooLarge:
		return efbig
	case mm.StatusNoData:
		return enxio
	case mm.StatusBusy:
		return fuse.EBUSY
	case mm.StatusDeleted:
		return estale
	case mm.StatusWorkingSetQuota:
		return fuse.Status(syscall.ENOMEM)
	case mm.StatusInPageError, mm.StatusOutPageError:
		return fuse.EIO
	}
	return fuse.EIO
}
