package mm

import "fmt"

// Status is why the memory manager refused or failed. It is the one error type of mm and mapping; fs/errno.go is the
// one place that turns it into an errno. The zero value is never an error.
type Status uint32

// The statuses. Names follow NTSTATUS where Windows has the same notion.
const (
	StatusSuccess          Status = iota
	StatusCommitmentLimit         // neither frames nor page file can take what is asked (STATUS_COMMITMENT_LIMIT)
	StatusInPageError             // a page's copy in its store cannot be read, or fails its checksum (STATUS_IN_PAGE_ERROR)
	StatusOutPageError            // a page could not be written to its store and had no frame to stay in
	StatusInvalidParameter        // an argument makes no sense
	StatusFileTooLarge            // beyond 8 EiB − 1
	StatusNoData                  // SEEK_DATA or SEEK_HOLE at or past the end
	StatusBusy                    // too many are waiting for the same thing; try again
	StatusDeleted                 // the section is gone
	StatusWorkingSetQuota         // more pages would have to stay in memory than may (STATUS_WORKING_SET_QUOTA)
)

// What only a Space says: no file operation ends in one of these.
const (
	StatusNotCommitted Status = 0x100 + iota // the page is not committed (STATUS_NOT_COMMITTED)
	StatusNoFrames                           // no frame can be had for a page to be locked (STATUS_INSUFFICIENT_RESOURCES)
)

var statusText = [...]string{
	StatusSuccess:          "success",
	StatusCommitmentLimit:  "commitment limit: no frame and no page-file slot is left to promise",
	StatusInPageError:      "in-page error: the page's stored copy cannot be read back",
	StatusOutPageError:     "out-page error: the page could not be written to its page file",
	StatusInvalidParameter: "invalid parameter",
	StatusFileTooLarge:     "file too large",
	StatusNoData:           "no data at or after that offset",
	StatusBusy:             "busy",
	StatusDeleted:          "section deleted",
	StatusWorkingSetQuota:  "working set quota: at most half of memory can be kept from leaving it",
}

var spaceText = map[Status]string{
	StatusNotCommitted: "page not committed",
	StatusNoFrames:     "insufficient resources: no frame can be had",
}

// Error is the status in words.
func (s Status) Error() string {
	if int(s) < len(statusText) {
		return statusText[s]
	}
	if text, ok := spaceText[s]; ok {
		return text
	}
	return fmt.Sprintf("status %d", uint32(s))
}
