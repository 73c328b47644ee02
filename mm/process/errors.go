package process

import (
	"errors"
	"fmt"

	"memfs/mm"
)

// Error is a Win32 error code: what GetLastError says after a call that failed.
type Error uint32

// The errors of the memory API (winerror.h).
const (
	Success            Error = 0
	FileNotFound       Error = 2
	PathNotFound       Error = 3
	AccessDenied       Error = 5
	InvalidHandle      Error = 6
	NotEnoughMemory    Error = 8
	BadLength          Error = 24
	GenFailure         Error = 31
	SharingViolation   Error = 32
	NotSupported       Error = 50
	UnexpNetErr        Error = 59
	FileExists         Error = 80
	InvalidParameter   Error = 87
	DiskFull           Error = 112
	InsufficientBuffer Error = 122
	NegativeSeek       Error = 131
	Discarded          Error = 157
	NotLocked          Error = 158
	Busy               Error = 170
	AlreadyExists      Error = 183
	BadExeFormat       Error = 193
	NoMoreItems        Error = 259
	NotOwner           Error = 288
	PartialCopy        Error = 299
	InvalidAddress     Error = 487
	NoAccessError      Error = 998
	FileInvalid        Error = 1006
	SwapError          Error = 999
	MappedAlignment    Error = 1132
	UserMappedFile     Error = 1224
	PrivilegeNotHeld   Error = 1314
	NoSystemResources  Error = 1450
	WorkingSetQuota    Error = 1453
	CommitmentLimit    Error = 1455
	// GuardPageViolation is a status that becomes the last error unchanged.
	GuardPageViolation Error = 0x80000001
)

var errorNames = map[Error]string{
	Success: "ERROR_SUCCESS", FileNotFound: "ERROR_FILE_NOT_FOUND", AccessDenied: "ERROR_ACCESS_DENIED",
	InvalidHandle: "ERROR_INVALID_HANDLE", NotEnoughMemory: "ERROR_NOT_ENOUGH_MEMORY", BadLength: "ERROR_BAD_LENGTH",
	GenFailure: "ERROR_GEN_FAILURE", SharingViolation: "ERROR_SHARING_VIOLATION", NotSupported: "ERROR_NOT_SUPPORTED", UnexpNetErr: "ERROR_UNEXP_NET_ERR",
	PathNotFound: "ERROR_PATH_NOT_FOUND", FileExists: "ERROR_FILE_EXISTS",
	NegativeSeek: "ERROR_NEGATIVE_SEEK", InvalidParameter: "ERROR_INVALID_PARAMETER", DiskFull: "ERROR_DISK_FULL",
	InsufficientBuffer: "ERROR_INSUFFICIENT_BUFFER", Discarded: "ERROR_DISCARDED", NotLocked: "ERROR_NOT_LOCKED",
	Busy: "ERROR_BUSY", AlreadyExists: "ERROR_ALREADY_EXISTS", BadExeFormat: "ERROR_BAD_EXE_FORMAT",
	NoMoreItems: "ERROR_NO_MORE_ITEMS", PartialCopy: "ERROR_PARTIAL_COPY", InvalidAddress: "ERROR_INVALID_ADDRESS",
	NoAccessError: "ERROR_NOACCESS", NotOwner: "ERROR_NOT_OWNER", FileInvalid: "ERROR_FILE_INVALID", SwapError: "ERROR_SWAPERROR",
	MappedAlignment: "ERROR_MAPPED_ALIGNMENT", UserMappedFile: "ERROR_USER_MAPPED_FILE",
	PrivilegeNotHeld: "ERROR_PRIVILEGE_NOT_HELD", NoSystemResources: "ERROR_NO_SYSTEM_RESOURCES",
	WorkingSetQuota: "ERROR_WORKING_SET_QUOTA", CommitmentLimit: "ERROR_COMMITMENT_LIMIT",
	GuardPageViolation: "STATUS_GUARD_PAGE_VIOLATION",
}

// Error is the constant's name.
func (e Error) Error() string {
	if s, ok := errorNames[e]; ok {
		return s
	}
	return fmt.Sprintf("ERROR_%d", uint32(e))
}

// ErrorConstants are the errors by the names of their constants.
func ErrorConstants() map[string]Error {
	m := make(map[string]Error, len(errorNames))
	for e, s := range errorNames {
		m[s] = e
	}
	return m
}

// Kind is how memory was touched: the first parameter of an exception.
type Kind uint8

// The kinds, as in ExceptionInformation[0].
const (
	Read    Kind = 0
	Write   Kind = 1
	Fetch   Kind = 8
	fetchNo      = Read // what a fetch is without NX
)

func (k Kind) String() string {
	switch k {
	case Read:
		return "read"
	case Write:
		return "write"
	}
	return "execute"
}

// The exception codes (NTSTATUS).
const (
	StatusAccessViolation    uint32 = 0xC0000005
	StatusInPageError        uint32 = 0xC0000006
	StatusGuardPageViolation uint32 = 0x80000001
	StatusStackOverflow      uint32 = 0xC00000FD
)

// Exception is what the program is told when it touches memory that it may not touch, or that cannot be had.
type Exception struct {
	Code    uint32
	Kind    Kind
	Address uint64 // of the first byte that faulted
}

func (e *Exception) Error() string {
	return fmt.Sprintf("exception 0x%08X: %v of 0x%x", e.Code, e.Kind, e.Address)
}

// win32 is the Win32 error of a failure of the memory manager.
func win32(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mm.StatusCommitmentLimit):
		return CommitmentLimit
	case errors.Is(err, mm.StatusWorkingSetQuota):
		return WorkingSetQuota
	case errors.Is(err, mm.StatusNoFrames):
		return NoSystemResources
	case errors.Is(err, mm.StatusInPageError), errors.Is(err, mm.StatusOutPageError):
		return SwapError
	case errors.Is(err, mm.StatusDeleted):
		return AccessDenied
	case errors.Is(err, mm.StatusNotCommitted):
		return InvalidAddress
	}
	return err
}
