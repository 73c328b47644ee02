package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fsType is what the kernel calls our mounts.
const fsType = "fuse.memfs"

// probeTimeout is how long a mount has to answer a statfs. One that does not is hung.
const probeTimeout = 3 * time.Second

// mountEntry is one line of /proc/self/mountinfo.
type mountEntry struct {
	device     string // major:minor
	mountpoint string
	fsType     string
	source     string
	options    string // of the super block
	perMount   string // options of the mount itself
}

// isFUSE reports whether a daemon answers for the mount, and may therefore not answer.
func (m mountEntry) isFUSE() bool {
	return m.fsType == "fuse" || m.fsType == "fuseblk" || strings.HasPrefix(m.fsType, "fuse.")
}

// owner is the user that a FUSE mount belongs to.
func (m mountEntry) owner() string {
	for option := range strings.SplitSeq(m.options, ",") {
		if id, ok := strings.CutPrefix(option, "user_id="); ok {
			return id
		}
	}
	return ""
}

// allowsOthers reports whether users other than the owner may use a FUSE mount.
func (m mountEntry) allowsOthers() bool {
	return slices.Contains(strings.Split(m.options, ","), "allow_other")
}

// mountTable reads the mounts of our namespace, in the order they were made. It asks no mount anything.
func mountTable() ([]mountEntry, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountTable(text), nil
}

func parseMountTable(text []byte) (table []mountEntry) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		mount, super, ok := strings.Cut(lines.Text(), " - ")
		fields, superFields := strings.Fields(mount), strings.Fields(super)
		if !ok || len(fields) < 6 || len(superFields) < 2 {
			continue
		}
		m := mountEntry{
			device:     fields[2],
			mountpoint: unescape(fields[4]),
			perMount:   fields[5],
			fsType:     superFields[0],
			source:     unescape(superFields[1]),
		}
		if len(superFields) > 2 {
			m.options = superFields[2]
		}
		table = append(table, m)
	}
	return table
}

// unescape undoes the kernel's octal escapes of blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

// topMount is the mount that is seen at path, which is absolute and without links: the last one made there.
func topMount(table []mountEntry, path string) (top mountEntry, found bool) {
	for _, m := range table {
		if m.mountpoint == path {
			top, found = m, true
		}
	}
	return top, found
}

// absolute makes a path absolute and takes the links out of all of it but the last element, which may be a mount that
// does not answer. Links that lead to a link in the last element are left to the caller.
func absolute(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil || abs == "/" {
		return abs, err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// checkMountpoint is the place that memfs may be mounted on for path, or why it may not. A memfs mount whose daemon has
// died is taken away; warn tells of it.
func checkMountpoint(path string, nonempty bool, warn func(string, ...any)) (string, error) {
	refuse := func(format string, args ...any) (string, error) {
		return "", fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...))
	}
	place := path
	for links := 0; ; links++ {
		abs, err := absolute(place)
		if err != nil {
			return refuse("%s", reason(err))
		}
		if err := clearDeadMount(path, abs, warn); err != nil {
			return "", err
		}
		info, err := os.Lstat(abs)
		switch {
		case errors.Is(err, fs.ErrNotExist) && links == 0:
			return refuse("no such directory; make it first (mkdir -p)")
		case errors.Is(err, fs.ErrNotExist):
			return refuse("a link to %s, which does not exist", place)
		case err != nil:
			return refuse("%s", reason(err))
		case info.Mode()&fs.ModeSymlink != 0 && links < 40:
			target, err := os.Readlink(abs)
			if err != nil {
				return refuse("%s", reason(err))
			}
			if place = target; !filepath.IsAbs(target) {
				place = filepath.Join(filepath.Dir(abs), target)
			}
			continue
		case !info.IsDir():
			return refuse("not a directory; memfs is mounted on a directory")
		}
		place = abs
		break
	}
	if nonempty {
		return place, nil
	}
	dir, err := os.Open(place)
	if err != nil {
		return refuse("%s", reason(err))
	}
	defer dir.Close()
	names, err := dir.Readdirnames(1)
	if err != nil && err != io.EOF {
		return refuse("%s", reason(err))
	}
	if len(names) > 0 {
		return refuse("not empty: mount on an empty directory, or with --nonempty, which hides what is in it until umount")
	}
	return place, nil
}

// clearDeadMount looks at what is mounted at place, and takes it away if it is a memfs whose daemon has died. path is
// what the user calls the place.
func clearDeadMount(path, place string, warn func(string, ...any)) error {
	for {
		table, err := mountTable()
		if err != nil {
			return err
		}
		m, found := topMount(table, place)
		if !found || !m.isFUSE() {
			return nil
		}
		ours := m.fsType == fsType
		// Not stat: the kernel may answer that from its cache for a daemon that is long dead.
		err = systemCall(probeTimeout, "statfs", place)
		switch {
		case err == nil && ours:
			return fmt.Errorf("%s: already a memfs mount; `memfs umount %s` ends it, or choose another directory", path, path)
		case err == errTimeout && ours:
			return fmt.Errorf("%s: the memfs mount there does not answer; `memfs umount --force %s` ends it", path, path)
		case err == errTimeout:
			return fmt.Errorf("%s: the %s mount there does not answer; unmount it first", path, m.fsType)
		case errors.Is(err, unix.ENOTCONN) && ours:
			if err := unmount(place, unix.MNT_DETACH, probeTimeout); err != nil {
				return fmt.Errorf("%s: a dead memfs mount is there and cannot be taken away: %w", path, err)
			}
			warn("%s: took away a memfs mount whose daemon had died", path)
		case errors.Is(err, unix.ENOTCONN):
			return fmt.Errorf("%s: a dead %s mount is there; unmount it first (fusermount3 -u or umount -l)", path, m.fsType)
		default:
			return nil // whatever else is wrong with it shows in what follows
		}
	}
}

// findMount is the memfs mount that path names, for the verbs that look after one. It does not touch the mount.
func findMount(path string) (mountEntry, error) {
	table, err := mountTable()
	if err != nil {
		return mountEntry{}, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return mountEntry{}, err
	}
	m, found := topMount(table, abs)
	if !found {
		if place, absErr := absolute(path); absErr == nil {
			abs = place
			m, found = topMount(table, abs)
		}
	}
	for links := 0; !found && links < 40; links++ {
		// No mount: nothing can hang on it, unless it is a link to one, which readlink does not follow.
		target, err := os.Readlink(abs)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(abs), target)
		}
		if abs, err = absolute(target); err != nil {
			break
		}
		m, found = topMount(table, abs)
	}
	switch {
	case found && m.fsType == fsType:
		return m, nil
	case found:
		return mountEntry{}, fmt.Errorf("%s: not a memfs mount, but %s", path, m.fsType)
	}
	if _, err := os.Lstat(abs); err != nil {
		return mountEntry{}, fmt.Errorf("%s: %s", path, reason(err))
	}
	if inside, ok := mountAbove(table, abs); ok && inside.fsType == fsType {
		return mountEntry{}, fmt.Errorf("%s: inside a memfs mount; name the mount itself: %s", path, inside.mountpoint)
	}
	return mountEntry{}, fmt.Errorf("%s: nothing is mounted there; `memfs mount %s` does", path, path)
}

// mountAbove is the mount that a path without links lies in.
func mountAbove(table []mountEntry, path string) (mountEntry, bool) {
	for {
		if m, found := topMount(table, path); found {
			return m, true
		}
		if path == "/" || path == "." {
			return mountEntry{}, false
		}
		path = filepath.Dir(path)
	}
}

// reason is the cause of an error without the operation and the path that package os puts before it.
func reason(err error) string {
	var pathErr *fs.PathError
	var linkErr *os.LinkError
	var callErr *os.SyscallError
	switch {
	case errors.As(err, &pathErr):
		err = pathErr.Err
	case errors.As(err, &linkErr):
		err = linkErr.Err
	case errors.As(err, &callErr):
		err = callErr.Err
	}
	return err.Error()
}
