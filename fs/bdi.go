package fs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	bdiClass = "/sys/class/bdi"

	// readAhead is how far the host kernel reads ahead of a program that reads a file in order, in bytes: one view. It is
	// also how much it reads around a touch of a mapping, wanted or not, which is why it is not more.
	readAhead = 256 << 10
)

// tuneBDI bounds what programs may have written and the host kernel has not sent us, and how far it reads ahead. Only root
// may; without, the host's own figures hold.
func (f *fileSystem) tuneBDI(mountpoint string) {
	b, err := findBDI(mountpoint)
	if err != nil {
		f.opts.Log("backing device: %v", err)
		return
	}
	_ = b.set("read_ahead_kb", readAhead>>10) // without, it is slower
	f.device.Store(&b)
	f.boundDirty(f.sys.Budget().HostDirty)
}

// boundDirty bounds what programs may have written and the host kernel has not sent us, in bytes; 0 leaves it as it is.
// If the host does not take it, its own figure holds from the start, and later the bound there was.
func (f *fileSystem) boundDirty(bound uint64) {
	b := f.device.Load()
	if b == nil || bound == 0 {
		return
	}
	limit, err := b.boundDirty(bound)
	if err != nil {
		f.opts.Log("dirty data is bounded by the host's own figure: %v", err)
		return
	}
	f.dirtyLimit.Store(limit)
}

// bdi is the folder of one backing device in sysfs.
type bdi string

// findBDI is the backing device of a mount. It looks into mountinfo, since a stat of the mountpoint would be a request to
// ourselves.
func findBDI(mountpoint string) (bdi, error) {
	info, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer info.Close()
	device, err := mountDevice(info, mountpoint)
	if err != nil {
		return "", err
	}
	return bdi(filepath.Join(bdiClass, device)), nil
}

// mountDevice is the major:minor of the last mount on a path in a mountinfo file (proc_pid_mountinfo(5)).
func mountDevice(info io.Reader, mountpoint string) (string, error) {
	device := ""
	lines := bufio.NewScanner(info)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && unescape(fields[4]) == mountpoint {
			device = fields[2]
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	if device == "" {
		return "", fmt.Errorf("%s is not in mountinfo", mountpoint)
	}
	return device, nil
}

// unescape undoes the octal escapes of mountinfo: blank, tab, newline, backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (b bdi) set(name string, value uint64) error {
	file, err := os.OpenFile(filepath.Join(string(b), name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(strconv.FormatUint(value, 10))
	return err
}

func (b bdi) get(name string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(string(b), name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// boundDirty sets the most bytes of dirty data, strictly for this device, and returns what the host made of it.
func (b bdi) boundDirty(bytes uint64) (uint64, error) {
	if err := b.set("strict_limit", 1); err != nil {
		return 0, err
	}
	if err := b.set("max_bytes", bytes); err != nil {
		return 0, err
	}
	return b.get("max_bytes")
}
