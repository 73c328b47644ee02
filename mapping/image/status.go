package image

import "fmt"

// Status is the NTSTATUS that a file is refused with. All of them are ERROR_BAD_EXE_FORMAT in Win32.
type Status uint32

// The refusals.
const (
	StatusInvalidFileForSection Status = 0xC0000020 // empty, or without a whole section table
	StatusInvalidImageFormat    Status = 0xC000007B // a header that cannot be, or for a machine that we are not
	StatusInvalidImageNEFormat  Status = 0xC000011B // 16-bit OS/2
	StatusInvalidImageLEFormat  Status = 0xC000012E // VxD, 32-bit OS/2
	StatusInvalidImageNotMZ     Status = 0xC000012F // neither
	StatusInvalidImageProtect   Status = 0xC0000130 // for DOS
	StatusInvalidImageWin16     Status = 0xC0000131 // 16-bit Windows
)

var statusNames = map[Status]string{
	StatusInvalidFileForSection: "STATUS_INVALID_FILE_FOR_SECTION",
	StatusInvalidImageFormat:    "STATUS_INVALID_IMAGE_FORMAT",
	StatusInvalidImageNEFormat:  "STATUS_INVALID_IMAGE_NE_FORMAT",
	StatusInvalidImageLEFormat:  "STATUS_INVALID_IMAGE_LE_FORMAT",
	StatusInvalidImageNotMZ:     "STATUS_INVALID_IMAGE_NOT_MZ",
	StatusInvalidImageProtect:   "STATUS_INVALID_IMAGE_PROTECT",
	StatusInvalidImageWin16:     "STATUS_INVALID_IMAGE_WIN_16",
}

// Error is the constant's name.
func (s Status) Error() string { return statusNames[s] }

// Refusal is why a file is no image. It wraps its Status.
type Refusal struct {
	Status Status
	Why    string
}

func (r *Refusal) Error() string { return fmt.Sprintf("%v: %s", r.Status, r.Why) }

// Unwrap is the status.
func (r *Refusal) Unwrap() error { return r.Status }

func refuse(s Status, format string, args ...any) error {
	return &Refusal{s, fmt.Sprintf(format, args...)}
}
