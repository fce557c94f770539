# Leaves in /tmp what is hard to remove: closed folders, links out (to its argument), odd names, FIFOs, sockets.
cd /tmp || exit
mkdir closed && touch closed/x && chmod 0 closed
ln -s "$1" out && ln -s / root && mkfifo fifo
mkdir $'\xff\n' && touch $'\xff\n'/$'\xfe'
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("s")'
